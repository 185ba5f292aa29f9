"""The run itself: servers are started, warmed, and measured in turns, one under load at a time."""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx

from loadtests.bench.machine import Limits, measured_apart
from loadtests.bench.material import Material
from loadtests.bench.plan import Group, Plan, Stage
from loadtests.bench.process import Failed
from loadtests.bench.servers import Engine, Hotswap, HttpServer, Peft, Server, Vllm, VllmInstalled
from loadtests.bench.workload import Sample, Workload

# Adapters that are asked before anything is measured.
WARM_UP = 16
# Requests, one after the other, until an adapter counts as warm.
HUNDRED = 100
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
        self.first_answers: dict[str, tuple[float, float]] = {}
        self.limits: Limits | None = None
        self.failures: list[str] = []
        self.servers: dict[str, Server] = {}
        self._running: set[str] = set()
        self._scratch, self._stack = scratch, stack
        self._next = 0
        self._began = time.monotonic()

    def run(self) -> None:
        self._say("measuring what the machine can do")
        self._try("machine", "limits", self._measure_limits)
        for stage in self.plan.stages:
            self._change_servers(stage.servers)
            self._run_stage(stage)
        self._change_servers([])

    def _run_stage(self, stage: Stage) -> None:
        self._say("warming up")
        pairs = {group: [pair for pair in self._started(group) if self._warm(*pair)] for group in stage.groups}
        failed: list[tuple[Server, Workload]] = []
        repeats = self.repeats * stage.often
        for repeat in range(repeats):
            began = time.monotonic()
            for group in stage.groups:
                self._say(f"repeat {repeat + 1} of {repeats}: {group.name}")
                # In turns, so that a machine that slows down slows nobody down more often than others.
                left = [pair for pair in pairs[group] if pair not in failed]
                failed += self._measure(group, left if repeat % 2 == 0 else left[::-1])
            to_go = repeats - repeat - 1
            if to_go and self._late(time.monotonic() - began):
                self.failures.append(f"{to_go} of {repeats} repeats, for want of time")
                break

    def _change_servers(self, wanted: list[str]) -> None:
        """End the servers that are not wanted, and start those that are."""
        for name in self._running - set(wanted):
            self._say(f"ending {name}")
            self.servers[name].process.stop()
            self._running.remove(name)
        new = [name for name in wanted if name not in self.servers]
        for batch in [new] if new and self.plan.together else [[name] for name in new]:
            self._start(batch)

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
                self._running.add(server.name)
                if isinstance(server, HttpServer) and not self.plan.together:
                    self._try(server.name, "first answer", lambda: self._time_first_answer(server))  # noqa: B023
        for server in launched:
            server.process.rest()

    def _time_first_answer(self, server: HttpServer) -> None:
        """Ask for an adapter that the server has not seen, before anything else, and again until it is warm."""
        workload = Workload("first", "classify", 1, 1, 1)
        stranger = self.material.classify[-1]
        first, *others = [workload.request(self.material, stranger, text) for text in self.material.reviews[-HUNDRED:]]
        seconds = server.first_answer(workload, first)
        warm = server.run(workload, others).latencies[-10:]
        self.first_answers[server.name] = seconds, statistics.median(warm)

    def _started(self, group: Group) -> list[tuple[Server, Workload]]:
        return [(self.servers[name], workload) for name, workload in group.pairs if name in self.servers]

    def _late(self, repeat_seconds: float) -> bool:
        """Whether another repeat would take the run beyond its time."""
        return self.plan.seconds is not None and time.monotonic() - self._began + repeat_seconds > self.plan.seconds

    def _measure(self, group: Group, pairs: list[tuple[Server, Workload]]) -> list[tuple[Server, Workload]]:
        """Run each once, and return those that failed."""
        # No text is used twice: a prefix cache would answer.
        self._next += max(workload.texts for _, workload in group.pairs)
        return [pair for pair in pairs if not self._run(*pair)]

    def _warm(self, server: Server, workload: Workload) -> bool:
        owners = (self.material.summarize if workload.kind == "summarize" else self.material.classify)[
            : workload.adapters
        ]
        # Each adapter is asked once, of hundreds the most popular: nobody is measured while it is still packing.
        texts = workload.requests(self.material, self._next)
        asked = [workload.request(self.material, owner, texts[0].text) for owner in owners[:WARM_UP]] or texts[:1]

        def work() -> None:
            server.load(owners)
            server.run(workload, 2 * asked)

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
