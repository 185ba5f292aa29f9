"""Stock vLLM's server and ours, asked for the same in their own words."""

from __future__ import annotations

import math
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from adapters.errors import HotswapError
from adapters.intake import add_version
from adapters.manifest import BaseReference, File, Manifest
from adapters.packages import file_digest
from adapters.releases import NewRelease
from adapters.store import CONFIG, Store
from loadtests.bench.process import Failed, Process
from loadtests.bench.servers import BASE, NEEDED
from loadtests.complaints.adapters import RANK, Material
from loadtests.serving import memory
from loadtests.swap_under_load.fingerprints import Scores
from service.engine.launch import BINDING, threads

SLOTS = 8  # versions in a batch, and in memory
MODEL_LEN = 2048
PATIENCE_SECONDS = 120.0
Way = Callable[[str, Path, Path], None]


class Server:
    """``offer`` and ``ask`` return what was wrong in words, where something was."""

    name: str
    unchecked: tuple[bool, ...] = (False,)
    process: Process

    def __init__(self, material: Material) -> None:
        self.material = material
        self.scratch = material.scratch / self.name
        self.scratch.mkdir()
        self.starts = 0
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self, *arguments: str, **environment: str) -> None:
        """Start it and wait until it answers. Raises :class:`Failed`."""
        self.starts += 1
        self.process = self._process(self.scratch / f"{self.starts}.log", list(arguments), environment)
        self.process.wait(self.ready)

    def kill(self) -> None:
        self.process.signal(signal.SIGKILL)
        self.process.stop()

    def stop(self) -> None:
        self.process.stop()

    def memory(self) -> int:
        """Return the resident bytes of all its processes."""
        return sum(memory(self.process.id).values())

    def post(self, path: str, body: dict[str, Any], key: str = "") -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.post(self.url + path, json=body, headers=headers, timeout=PATIENCE_SECONDS, trust_env=False)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30, trust_env=False)

    def ready(self) -> bool:
        try:
            return self.get(self.health).status_code == 200
        except httpx.HTTPError:
            return False

    def ask(self, reference: str, text: str, key: str = "") -> Scores | str:
        """Return the labels' shares, or the status and message of the refusal."""
        try:
            answer = self.post(*self._question(reference, text), key)
        except httpx.HTTPError as error:
            return type(error).__name__
        return self._shares(answer.json()) if answer.status_code == 200 else _words(answer)

    health: str

    def offer(self, name: str, folder: Path, *, unchecked: bool = False) -> str | None:
        raise NotImplementedError

    def withdraw(self, reference: str) -> None:
        raise NotImplementedError

    def known(self) -> list[str]:
        """Return the references under which something is loaded."""
        raise NotImplementedError

    def ways(self) -> dict[str, Way]:
        """Return the ways to replace the weights of a name that was offered from a folder by another folder's."""
        raise NotImplementedError

    def _process(self, log: Path, arguments: list[str], environment: dict[str, str]) -> Process:
        raise NotImplementedError

    def _question(self, reference: str, text: str) -> tuple[str, dict[str, Any]]:
        raise NotImplementedError

    def _shares(self, answer: Any) -> Scores | str:
        raise NotImplementedError


class Stock(Server):
    name, health = "vllm", "/health"

    def offer(self, name: str, folder: Path, *, unchecked: bool = False, **more: object) -> str | None:
        answer = self.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder), **more})
        return None if answer.status_code == 200 else _words(answer)

    def withdraw(self, reference: str) -> None:
        self.post("/v1/unload_lora_adapter", {"lora_name": reference}).raise_for_status()

    def known(self) -> list[str]:
        return [model["id"] for model in self.get("/v1/models").json()["data"] if model["id"] != BASE]

    def ways(self) -> dict[str, Way]:
        def unload_load(name: str, _: Path, new: Path) -> None:
            self.withdraw(name)
            self._must(name, new)

        def in_place(name: str, _: Path, new: Path) -> None:
            self._must(name, new, load_inplace=True)

        return {
            "unload, load from another folder": unload_load,
            "load_inplace from another folder": in_place,
            "unload, load from the same folder": lambda name, old, new: unload_load(name, old, overwrite(old, new)),
            "load_inplace from the same folder": lambda name, old, new: in_place(name, old, overwrite(old, new)),
        }

    def _must(self, name: str, folder: Path, **more: object) -> None:
        if refused := self.offer(name, folder, **more):
            raise Failed(refused)

    def _process(self, log: Path, arguments: list[str], environment: dict[str, str]) -> Process:
        limits = ["--max-loras", str(SLOTS), "--max-cpu-loras", str(SLOTS), "--max-lora-rank", str(RANK)]
        limits += ["--max-model-len", str(MODEL_LEN), "--dtype", "float32", "--host", "127.0.0.1"]
        limits += ["--port", str(self.port), "--enable-lora"]
        model = ["--model", str(self.material.base.folder), "--served-model-name", BASE]
        ours = threads(None)
        environment = {**NEEDED, BINDING: ours[BINDING], "VLLM_CPU_KVCACHE_SPACE": "1", **environment}
        if ours[BINDING] == "nobind":
            environment["OMP_NUM_THREADS"] = ours["OMP_NUM_THREADS"]
        module = "vllm.entrypoints.openai.api_server"
        return Process(module, [*model, *limits, *arguments], environment, log, piped=False)

    def _question(self, reference: str, text: str) -> tuple[str, dict[str, Any]]:
        task, tokenizer = self.material.task, self.material.base.tokenizer
        body = {"model": reference, "prompt": task.prompt(text, tokenizer).ids, "temperature": 0, "max_tokens": 1}
        body |= {"logprobs": 1, "return_tokens_as_token_ids": True}
        return "/v1/completions", body | {"logprob_token_ids": [label.token_id for label in task.labels]}

    def _shares(self, answer: Any) -> Scores | str:
        top = answer["choices"][0]["logprobs"]["top_logprobs"][0]
        weights = {label.name: math.exp(top[f"token_id:{label.token_id}"]) for label in self.material.task.labels}
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()} if total > 0 else f"200 {top}"


class Ours(Server):
    name, health, unchecked = "hotswap", "/readyz", (False, True)

    def __init__(self, material: Material) -> None:
        super().__init__(material)
        self.store = Store(self.scratch / "store")

    def offer(self, name: str, folder: Path, *, unchecked: bool = False) -> str | None:
        """Publish and release; ``unchecked`` writes both into the store past every check of ours, as a broken or
        hostile publisher might who has the right to write there."""
        try:
            if unchecked:
                version = self._smuggle(name, folder)
                self.store.release(name, NewRelease(stable=version))
            else:
                version = add_version(self.store, name, folder, self.material.task, self.material.base).version
                answer = self.post(f"/v1/adapters/{name}/releases", {"stable": version})
                if answer.status_code != 201:
                    return _words(answer)
        except HotswapError as error:
            return f"not published: {error}"
        return self._served(name, version)

    def withdraw(self, reference: str) -> None:
        name, _, version = reference.partition("@")
        self.store.retire(name, int(version))

    def known(self) -> list[str]:
        adapters = self.get("/v1/adapters").json()["adapters"]
        loaded = [(a["name"], v) for a in adapters for v in a["versions"] if v["state"] in ("resident", "draining")]
        return [f"{name}@{version['version']}" for name, version in loaded]

    def ways(self) -> dict[str, Way]:
        def release(name: str, _: Path, new: Path) -> None:
            if refused := self.offer(name, new):
                raise Failed(refused)

        def back(name: str, old: Path, new: Path) -> None:
            """Make the other weights the release before, and come back to them."""
            release(name, old, new)
            release(name, old, old)
            self.post(f"/v1/adapters/{name}/rollback", {}).raise_for_status()
            self._served(name, 2)

        return {
            "release of version 2": release,
            "release of version 2 from the same folder": lambda n, old, new: release(n, old, overwrite(old, new)),
            "rollback from version 3 to 2": back,
        }

    def _smuggle(self, name: str, folder: Path) -> int:
        files = {p.name: File(bytes=p.stat().st_size, digest=file_digest(p)) for p in folder.iterdir()}
        base = BaseReference(name=self.material.base.name, digest=self.material.base.digest)
        about: dict[str, Any] = {"task": self.material.task, "base": base, "files": files}
        about |= {"rank": 8, "alpha": 8, "target_modules": ("q_proj", "v_proj")}
        return self.store.add(name, folder, lambda n: Manifest(name=name, version=n, **about)).version

    def _served(self, name: str, version: int) -> str | None:
        """Wait until the version is served, or known not to be."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < give_up:
            told = self.get(f"/v1/adapters/{name}").json()
            state = next((v for v in told.get("versions", ()) if v["version"] == version), {"state": ""})
            if state["state"] == "failed":
                return f"not served: {state['reason']}"
            if state["state"] == "resident" and told["served_generation"] == len(self.store.history(name)):
                return None
            time.sleep(0.1)
        return f"neither served nor refused within {PATIENCE_SECONDS:.0f} s: {told}"

    def _process(self, log: Path, arguments: list[str], environment: dict[str, str]) -> Process:
        settings = {"port": self.port, "store": self.store.place, "cache": self.scratch / "cache"}
        settings |= {"max_loras": SLOTS, "max_cpu_loras": SLOTS, "max_lora_rank": RANK, "max_model_len": MODEL_LEN}
        settings["base_model"] = self.material.base.folder
        known = {f"HOTSWAP_{name.upper()}": str(value) for name, value in settings.items()}
        return Process("service", arguments, {**known, **environment}, log, piped=False)

    def _question(self, reference: str, text: str) -> tuple[str, dict[str, Any]]:
        return "/v1/predict", {"adapter": reference, "input": text}

    def _shares(self, answer: Any) -> Scores | str:
        output = answer["outputs"][0]
        return output.get("scores", f"200 {output}")


def overwrite(old: Path, new: Path) -> Path:
    """Put the other weights where the old ones are, as a training run does that always writes to one folder."""
    shutil.copytree(new, old, dirs_exist_ok=True)
    assert (old / CONFIG).is_file()
    return old


def _words(answer: httpx.Response) -> str:
    try:
        told = answer.json()
        error = told.get("error", told)
        said = error.get("message") or error.get("detail") or str(told) if isinstance(error, dict) else str(error)
    except ValueError:
        said = answer.text
    return f"{answer.status_code} {said}".strip()[:200]
