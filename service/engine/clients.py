"""Several processes that ask one vLLM, as the API servers of vLLM's own command do: each has sockets of its own."""

from __future__ import annotations

import mmap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Processes that may join in the place of those that have died, in one life of the engine: to each, vLLM says that it
# is ready once.
SPARE = 16
# The last requests of a process, by vLLM's names: what it had asked when it died is ended by them.
KEPT, NAME_BYTES = 1 << 16, 96


@dataclass(frozen=True)
class Seat:
    """Where one process asks and hears. ``asked`` is the file that its requests are noted in."""

    number: int
    count: int
    input: str
    output: str
    asked: Path

    def client(self, config: Any, loggers: list[Any] | None) -> Any:
        """Return vLLM's client there. Waits until the engine is ready."""
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.executor import Executor

        return AsyncLLM(
            vllm_config=config,
            executor_class=Executor.get_class(config),
            log_stats=False,
            log_requests=False,
            stat_loggers=loggers,
            client_addresses={"input_address": self.input, "output_address": self.output},
            client_count=self.count,
            client_index=self.number,
        )


def launched(arguments: Any, loggers: list[Any] | None, processes: int, folder: Path) -> tuple[Any, list[Seat]]:
    """Start vLLM's engine for so many processes; return this one's client, and the seats of the others."""
    from vllm.utils.network_utils import get_open_zmq_ipc_path
    from vllm.v1.engine.utils import EngineZmqAddresses, launch_core_engines
    from vllm.v1.executor import Executor

    config, count = arguments.create_engine_config(), processes + SPARE
    seats = [
        Seat(number, count, get_open_zmq_ipc_path(), get_open_zmq_ipc_path(), folder / f"asked-{number}")
        for number in range(count)
    ]
    addresses = EngineZmqAddresses(inputs=[seat.input for seat in seats], outputs=[seat.output for seat in seats])
    executor = Executor.get_class(config)
    with launch_core_engines(config, executor, bool(loggers), addresses) as launch:
        pass
    try:
        client = seats[0].client(config, loggers)
    except BaseException:
        launch.engine_manager.shutdown()
        raise
    # As if the client had started them: it watches them, and ends them when it is shut down.
    client.engine_core.resources.engine_manager = launch.engine_manager
    client.engine_core.start_engine_core_monitor()
    return client, seats[1:]


class Asked:
    """A process's last requests, in a file that outlives it."""

    def __init__(self, file: Path) -> None:
        with file.open("w+b") as opened:
            opened.truncate(KEPT * NAME_BYTES)
            self._names = mmap.mmap(opened.fileno(), KEPT * NAME_BYTES)
        self._count = 0

    def follow(self, client: Any) -> None:
        """Note what ``client`` asks from now on, each before it is sent."""
        send = client.engine_core.add_request_async

        async def noted(request: Any) -> None:
            at = self._count % KEPT * NAME_BYTES
            self._names[at : at + NAME_BYTES] = request.request_id.encode()[:NAME_BYTES].ljust(NAME_BYTES, b"\0")
            self._count += 1
            await send(request)

        client.engine_core.add_request_async = noted


def asked(file: Path) -> list[str]:
    """Return the names of the last requests that were noted in ``file``."""
    if not file.exists():
        return []
    names = file.read_bytes()
    each = (names[at : at + NAME_BYTES].rstrip(b"\0").decode() for at in range(0, len(names), NAME_BYTES))
    return [name for name in each if name]


def stat_logger() -> tuple[type[Any], list[float]]:
    """Return vLLM's logger for Prometheus, and when it last wrote the engine's gauges: the engine tells them to one
    of its processes at a time."""
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    written = [0.0]

    class Dated(PrometheusStatLogger):  # type: ignore[misc]
        def record(self, scheduler_stats: Any, *more: Any, **named: Any) -> None:
            if scheduler_stats is not None:
                written[0] = time.monotonic()
            super().record(scheduler_stats, *more, **named)

    return Dated, written
