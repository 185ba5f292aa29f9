"""The run itself: servers are started, warmed, and measured in turns, one under load at a time."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx

from loadtests.bench.machine import Limits, measured_apart
from loadtests.bench.material import Material
from loadtests.bench.plan import Group, Plan
from loadtests.bench.process import Failed
from loadtests.bench.servers import Engine, Hotswap, HttpServer, Peft, Server, Vllm, VllmInstalled
from loadtests.bench.workload import Sample, Workload

WARM_UP = 2
KINDS: dict[str, Callable[[Material, Path], Server]] = {
    "ours": Hotswap,
    "vllm": Vllm,
    "vllm-installed": VllmInstalled,
    "peft": Peft,
    "engine-grouped": lambda material, scratch: Engine(material, scratch, "grouped"),
    "engine-stock": lambda material, scratch: Engine(material, scratch, "stock"),
}


class Bench:
    """What was measured, and what could not be. Leaving the ``stack`` ends every server."""

    def __init__(self, plan: Plan, material: Material, repeats: int, scratch: Path, stack: ExitStack) -> None:
        self.plan, self.material, self.repeats = plan, material, repeats
        self.samples: dict[tuple[str, str], list[Sample]] = defaultdict(list)
        self.first_answers: dict[str, float] = {}
        self.limits: Limits | None = None
        self.done = 0
        self.failures: list[str] = []
        self.servers: dict[str, Server] = {}
        self._scratch, self._stack = scratch, stack
        self._next = 0
        self._began = time.monotonic()

    def run(self) -> None:
        self._say("measuring what the machine can do")
        self._try("machine", "limits", self._measure_limits)
        names = [name for name in KINDS if name in self.plan.servers]
        for batch in [names] if self.plan.together else [[name] for name in names]:
            self._start(batch)
        if not self.plan.together:
            self._time_first_answers()
        self._say("warming up")
        pairs = {group: [pair for pair in self._started(group) if self._warm(*pair)] for group in self.plan.groups}
        for repeat in range(self.repeats):
            began = time.monotonic()
            for group in self.plan.groups:
                self._say(f"repeat {repeat + 1} of {self.repeats}: {group.name}")
                self._measure(group, pairs[group])
            self.done += 1
            if self.done < self.repeats and self._late(time.monotonic() - began):
                self.failures.append(f"{self.repeats - self.done} of {self.repeats} repeats, for want of time")
                break
        self._say("ending the servers")
        for server in self.servers.values():
            server.process.end()

    def _measure_limits(self) -> None:
        self.limits = measured_apart()

    def _start(self, names: list[str]) -> None:
        self._say(f"starting {', '.join(names)}")
        launched = []
        for name in names:
            server = KINDS[name](self.material, self._scratch)
            server.launch()
            self._stack.callback(server.process.stop)
            launched.append(server)
        for server in launched:
            if self._try(server.name, "start", server.wait):
                self.servers[server.name] = server
        for server in launched:
            server.process.rest()

    def _time_first_answers(self) -> None:
        """Ask each server for an adapter that it has not seen, before anything else."""
        workload = Workload("first", "classify", 1, 1, 1)
        for server in list(self.servers.values()):
            if isinstance(server, HttpServer):
                stranger = self.material.classify[-1]
                request = workload.request(self.material, stranger, self.material.reviews[-1])
                with server.awake():
                    self._try(
                        server.name,
                        "first answer",
                        lambda: self.first_answers.update({server.name: server.first_answer(workload, request)}),  # noqa: B023
                    )

    def _started(self, group: Group) -> list[tuple[Server, Workload]]:
        return [(self.servers[name], workload) for name, workload in group.pairs if name in self.servers]

    def _late(self, repeat_seconds: float) -> bool:
        """Whether another repeat would take the run beyond its time."""
        return self.plan.seconds is not None and time.monotonic() - self._began + repeat_seconds > self.plan.seconds

    def _measure(self, group: Group, pairs: list[tuple[Server, Workload]]) -> None:
        # No text is used twice: a prefix cache would answer.
        self._next += max(workload.texts for _, workload in group.pairs)
        for pair in list(pairs):
            if not self._run(*pair):
                pairs.remove(pair)

    def _warm(self, server: Server, workload: Workload) -> bool:
        requests = workload.requests(self.material, self._next)
        owners = (self.material.summarize if workload.kind == "summarize" else self.material.classify)[
            : workload.adapters
        ]

        def work() -> None:
            server.load(owners)
            server.run(workload, requests[: min(WARM_UP, workload.in_flight)])

        with server.awake():
            return self._try(server.name, workload.name, work)

    def _run(self, server: Server, workload: Workload) -> bool:
        requests = workload.requests(self.material, self._next)
        kept = self.samples[server.name, workload.name]
        with server.awake():
            if self._try(server.name, workload.name, lambda: kept.append(server.run(workload, requests))):
                return True
        del self.samples[server.name, workload.name]  # what is left would be compared with other repeats
        return False

    def _try(self, server: str, what: str, work: Callable[[], object]) -> bool:
        try:
            work()
        except (Failed, httpx.HTTPError, OSError) as error:
            self.failures.append(f"{server}, {what}: {error}")
            self._say(self.failures[-1])
            return False
        return True

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:5.0f} s  {text}", file=sys.stderr, flush=True)
