"""The servers, each asked for the same in its own words."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import httpx

from adapters.tasks import ClassificationTask
from loadtests.bench.limits import DTYPE, KV_GIB, LORAS, MODEL_LEN, RANK, SEQUENCES
from loadtests.bench.load import drive
from loadtests.bench.material import Adapter, Material
from loadtests.bench.process import Process
from loadtests.bench.workload import Request, Sample, Workload
from service.engine.launch import BINDING, threads

BASE = "base"
# Without these, stock vLLM loads no adapter over its API, or looks for the model on a network.
NEEDED = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "HF_HUB_OFFLINE": "1"}


class Server:
    """A process that answers requests. It is stopped in its tracks except within :meth:`awake`."""

    name: str
    process: Process

    def __init__(self, material: Material, scratch: Path) -> None:
        self.material, self.log = material, scratch / f"{self.name}.log"
        self.known: set[str] = set()
        # Every adapter stays in memory, as far as a server can be told so.
        self.resident = max(LORAS, len(material.classify) + len(material.summarize))
        self.start_seconds = 0.0

    def launch(self) -> None:
        self._began = time.monotonic()
        self.process = self._process()

    def wait(self) -> None:
        """Wait until it can answer. Raises :class:`~loadtests.bench.process.Failed`."""
        self.process.wait(self._ready)
        self.start_seconds = time.monotonic() - self._began

    def start(self, stack: ExitStack) -> None:
        """Start it, wait, and put it to rest; it is ended with the ``stack``."""
        print(f"starting {self.name}", file=sys.stderr, flush=True)
        self.launch()
        stack.callback(self.process.stop)
        self.wait()
        self.process.rest()

    def awake(self) -> AbstractContextManager[None]:
        return self.process.awake()

    def load(self, adapters: Iterable[Adapter | None]) -> None:
        """Make adapters known, once each, whatever that takes."""
        new = {adapter.name: adapter for adapter in adapters if adapter and adapter.name not in self.known}
        if new:
            self._load(list(new.values()))
            self.known |= set(new)

    def first_answer(self, workload: Workload, request: Request) -> float:
        """Return the seconds until an adapter that was never seen has answered."""
        began = time.monotonic()
        self.load([request.adapter])
        self.run(workload, [request])
        return time.monotonic() - began

    def run(self, workload: Workload, requests: Sequence[Request]) -> Sample:
        raise NotImplementedError

    def _process(self) -> Process:
        raise NotImplementedError

    def _ready(self) -> bool:
        raise NotImplementedError

    def _load(self, adapters: list[Adapter]) -> None:
        raise NotImplementedError


class HttpServer(Server):
    health = "/health"

    def __init__(self, material: Material, scratch: Path) -> None:
        super().__init__(material, scratch)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def run(self, workload: Workload, requests: Sequence[Request]) -> Sample:
        calls = [self._call(workload, request) for request in requests]
        seconds, latencies, answers = drive(self.url, calls, workload.in_flight)
        read = [self._read(request, answer) for request, answer in zip(requests, answers, strict=True)]
        prompt_tokens = sum(len(request.prompt) for request in requests)
        return Sample(seconds, latencies, [text for text, _ in read], prompt_tokens, sum(tokens for _, tokens in read))

    def _ready(self) -> bool:
        try:
            return httpx.get(self.url + self.health, timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def _call(self, workload: Workload, request: Request) -> tuple[str, dict]:
        raise NotImplementedError

    def _read(self, request: Request, answer: Any) -> tuple[str, int]:
        """Return the answer, and how many tokens it took."""
        raise NotImplementedError


class Hotswap(HttpServer):
    name, health = "ours", "/readyz"

    def _process(self) -> Process:
        environment = {f"HOTSWAP_{name.upper()}": str(value) for name, value in self._settings().items()}
        return Process("service", [], environment, self.log, piped=False)

    def _settings(self) -> dict[str, Any]:
        return {
            "port": self.port,
            "store": self.material.store,
            "cache": self.material.cache,
            "max_loras": LORAS,
            "max_cpu_loras": self.resident,
            "max_lora_rank": RANK,
            "max_model_len": MODEL_LEN,
            "max_concurrency": SEQUENCES,
            "kv_cache_gib": KV_GIB,
            "dtype": DTYPE,
        }

    def _load(self, adapters: list[Adapter]) -> None:
        """Asking is enough: the service fetches what it is asked for."""
        drive(self.url, [("/v1/predict", {"adapter": f"{a.name}@1", "input": "A first text."}) for a in adapters], 8)

    def first_answer(self, workload: Workload, request: Request) -> float:
        began = time.monotonic()
        self.run(workload, [request])
        return time.monotonic() - began

    def _call(self, workload: Workload, request: Request) -> tuple[str, dict]:
        if workload.route == "completions":
            assert request.adapter is not None
            return "/v1/completions", _completion(f"{request.adapter.name}@1", request)
        body: dict[str, Any] = {"input": request.text}
        if request.adapter:
            body["adapter"] = f"{request.adapter.name}@1"
        else:
            body["labels"] = _labels(request)
        return f"/v1/{workload.kind}", body

    def _read(self, request: Request, answer: Any) -> tuple[str, int]:
        if "choices" in answer:
            return answer["choices"][0]["text"].strip(), answer["usage"]["completion_tokens"]
        output = answer["outputs"][0]
        return output.get("label") or output["summary"], answer["usage"]["completion_tokens"]


class Vllm(HttpServer):
    """Stock vLLM's OpenAI server with our dtype, threads and limits."""

    name = "vllm"

    def _process(self) -> Process:
        arguments = ["--max-loras", str(LORAS), "--max-cpu-loras", str(self.resident), "--max-lora-rank", str(RANK)]
        arguments += ["--max-model-len", str(MODEL_LEN), "--max-num-seqs", str(SEQUENCES), "--dtype", DTYPE]
        environment = {"VLLM_CPU_KVCACHE_SPACE": str(KV_GIB)}
        ours = threads(None)
        environment[BINDING] = ours[BINDING]
        if ours[BINDING] == "nobind":  # otherwise vLLM counts the CPUs that it is bound to
            environment["OMP_NUM_THREADS"] = ours["OMP_NUM_THREADS"]
        return self._server(arguments, environment)

    def _server(self, arguments: list[str], environment: dict[str, str]) -> Process:
        shared = ["--model", str(self.material.base.folder), "--served-model-name", BASE, "--enable-lora"]
        shared += ["--host", "127.0.0.1", "--port", str(self.port)]
        module = "vllm.entrypoints.openai.api_server"
        return Process(module, [*shared, *arguments], {**NEEDED, **environment}, self.log, piped=False)

    def _load(self, adapters: list[Adapter]) -> None:
        for adapter in adapters:
            body = {"lora_name": adapter.name, "lora_path": str(adapter.folder)}
            answer = httpx.post(f"{self.url}/v1/load_lora_adapter", json=body, timeout=120, trust_env=False)
            answer.raise_for_status()

    def _call(self, workload: Workload, request: Request) -> tuple[str, dict]:
        body = _completion(request.adapter.name if request.adapter else BASE, request)
        if request.sampling.choices and workload.labels == "choice":
            # The blank belongs to the label's token; one token more for the end that the grammar insists on.
            body["structured_outputs"] = {"choice": [f" {label}" for label in _labels(request)]}
            body["max_tokens"] += 1
        elif request.sampling.choices:
            body |= {"logprobs": 1, "logprob_token_ids": list(request.sampling.choices)}
            body["return_tokens_as_token_ids"] = True
        return "/v1/completions", body

    def _read(self, request: Request, answer: Any) -> tuple[str, int]:
        choice, tokens = answer["choices"][0], answer["usage"]["completion_tokens"]
        if not choice["logprobs"]:
            return choice["text"].strip(), tokens
        scores = choice["logprobs"]["top_logprobs"][0]
        return _best(request, {token: scores[f"token_id:{token}"] for token in request.sampling.choices}), tokens


class VllmInstalled(Vllm):
    """Stock vLLM as it is when nobody has tuned it.

    But for one thing: on a CPU it wants 92 % of the memory to be free, and would not start beside anything.
    """

    name = "vllm-installed"

    def _process(self) -> Process:
        return self._server(["--gpu-memory-utilization", "0.15"], {})


class Peft(HttpServer):
    name = "peft"

    def _process(self) -> Process:
        arguments = ["--model", str(self.material.base.folder), "--port", str(self.port)]
        return Process("loadtests.bench.peft_server", arguments, {"HF_HUB_OFFLINE": "1"}, self.log, piped=False)

    def _load(self, adapters: list[Adapter]) -> None:
        drive(self.url, [("/load", {"name": a.name, "folder": str(a.folder)}) for a in adapters], 1)

    def _call(self, workload: Workload, request: Request) -> tuple[str, dict]:
        body: dict[str, Any] = {"adapter": request.adapter.name if request.adapter else None, "prompt": request.prompt}
        if request.sampling.choices:
            return "/classify", {**body, "labels": list(request.sampling.choices)}
        return "/generate", {**body, "max_tokens": request.sampling.max_tokens}

    def _read(self, request: Request, answer: Any) -> tuple[str, int]:
        if "scores" in answer:
            return _best(request, dict(zip(request.sampling.choices, answer["scores"], strict=True))), 1
        return answer["text"].strip(), answer["tokens"]


class Engine(Server):
    """Our engine alone, without HTTP, store or tokenizer."""

    def __init__(self, material: Material, scratch: Path, kernel: str) -> None:
        self.name, self.kernel = f"engine-{kernel}", kernel
        super().__init__(material, scratch)

    def _process(self) -> Process:
        return self._alone(["--kernel", self.kernel])

    def _alone(self, arguments: list[str]) -> Process:
        where = {"HOTSWAP_CACHE": str(self.material.cache)}  # the base lies there
        return Process("loadtests.bench.engine", arguments, where, self.log, piped=True)

    def _ready(self) -> bool:
        return self.process.has_answer() and bool(self.process.answer())

    def _load(self, adapters: list[Adapter]) -> None:
        self.process.ask(json.dumps({"load": {adapter.name: str(adapter.folder) for adapter in adapters}}))

    def run(self, workload: Workload, requests: Sequence[Request]) -> Sample:
        if workload.kind != "decode":
            return self._batch(requests, workload.in_flight)
        half = len(requests) // 2
        one = self._batch(requests[:half], workload.in_flight, max_tokens=1)
        many = self._batch(requests[half:], workload.in_flight)
        tokens = many.output_tokens - one.output_tokens
        return Sample(many.seconds - one.seconds, many.latencies, many.answers, many.prompt_tokens, tokens)

    def _batch(self, requests: Sequence[Request], in_flight: int, max_tokens: int | None = None) -> Sample:
        rows = [
            (r.adapter and r.adapter.name, r.prompt, max_tokens or r.sampling.max_tokens, r.sampling.choices)
            for r in requests
        ]
        told = json.loads(self.process.ask(json.dumps({"requests": rows, "in_flight": in_flight})))
        answers = [
            answer
            if isinstance(answer, str)
            else _best(request, dict(zip(request.sampling.choices, answer, strict=True)))
            for request, answer in zip(requests, told["answers"], strict=True)
        ]
        prompt_tokens = sum(len(request.prompt) for request in requests)
        return Sample(told["seconds"], told["latencies"], answers, prompt_tokens, told["tokens"])


def _completion(model: str, request: Request) -> dict[str, Any]:
    return {"model": model, "prompt": request.prompt, "temperature": 0, "max_tokens": request.sampling.max_tokens}


def _labels(request: Request) -> list[str]:
    assert isinstance(request.task, ClassificationTask)
    return [label.name for label in request.task.labels]


def _best(request: Request, scores: dict[int, float]) -> str:
    assert isinstance(request.task, ClassificationTask)
    return max(request.task.labels, key=lambda label: scores[label.token_id]).name
