"""``python -m service``: the server."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from adapters import cli
from adapters.base_model import Base, resolve_base
from adapters.catalogue import Catalogue
from adapters.errors import HotswapError
from adapters.seed import open_store
from adapters.signing import TrustedKeys
from adapters.store import Store
from service import logs, tracing
from service.engine import fitness, launch, sizing
from service.engine import options as vllm_options
from service.engine.base import EngineDown
from service.engine.device import Device
from service.engine.made import made
from service.engine.options import in_float32
from service.monitoring import commands, drift_report
from service.settings import Settings, rank_above

if TYPE_CHECKING:
    from service.http.keys import Keys

logger = logging.getLogger("hotswap")
SHOWN = 10
TRY = """curl -s {address}/v1/predict -H 'Content-Type: application/json'{key} \\
     -d '{{"adapter": "{adapter}", "input": "{text}"}}'"""


def main(*, relaunch: bool = False) -> int:
    """Run the command line; with ``relaunch`` in a process that has the engine's libraries preloaded."""
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="Serve adapters over one base model. Every setting is an environment variable:\n\n"
        + Settings.table(),
        epilog="example: HOTSWAP_PORT=9000 HOTSWAP_MAX_LORAS=16 python -m service",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prepare", action="store_true", help="fetch what is missing (the base model), then exit")
    parser.add_argument(
        "--warm-cache",
        action="store_true",
        help="start the engine once, so that all it compiles is in HOTSWAP_CACHE, then exit: for images",
    )
    parser.add_argument(
        "--new-key",
        metavar="ATTRIBUTES",
        nargs="?",
        const="",
        help="make an API key, print it and its line for the file of HOTSWAP_API_KEYS, then exit; "
        "attributes: 'name=team-a scopes=predict,admin adapters=legal-*,sentiment'",
    )
    parser.set_defaults(command=_serve, relaunch=relaunch)
    subcommands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for each in (commands, drift_report):
        each.add(subcommands)
    return cli.run(parser)


def _serve(options: argparse.Namespace) -> int:
    began = time.monotonic()
    if options.new_key is not None:
        return _new_key(options.new_key)
    settings = Settings.read()
    if settings.engine == "vllm":
        vllm_options.check(settings)
    if options.relaunch and settings.engine == "vllm" and not options.prepare:
        launch.relaunch(settings)
    logs.set_up(settings.log_level, settings.log_format)
    if tracing.set_up():
        logger.info("traces go to %s", next(filter(None, map(os.environ.get, tracing.ENDPOINTS))))
    if options.prepare:
        _base(settings)
        return 0
    device = _device(settings)  # not before: images are prepared where there is no GPU
    from service.http.keys import Keys

    keys = Keys.of(settings)  # what is wrong with them is found out now, not in a minute
    trusted = TrustedKeys(settings.trusted_keys) if settings.trusted_keys else None
    if options.warm_cache:
        return _warm_cache(settings, device)
    listener = _listen(settings.host, settings.port)  # a port that is taken is found out now, not in a minute
    base = _base(settings)
    if settings.engine == "vllm":
        fitness.check(settings, base.folder)
    started = time.monotonic()
    store = open_store(settings.store, seed="empty", trusted=trusted)
    catalogue = store.catalogue()
    names = [entry.name for entry in catalogue]
    settings = with_rank(settings, store, catalogue)
    if device is not None:
        settings = _sized(settings, device, base)
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    logger.info("store %s: %s (%.1f s)", store.place, shown or "no adapters", time.monotonic() - started)
    return _run(settings, keys, listener, store, base, names, began)


def _warm_cache(settings: Settings, device: Device | None) -> int:
    """Start the engine as the server would, and stop it."""
    base = _base(settings)
    if settings.engine == "vllm":
        fitness.check(settings, base.folder)
    if device is not None:
        settings = _sized(settings, device, base)
    engine, began = made(settings.model_copy(update={"api_processes": 1}), base), time.monotonic()

    async def once() -> None:
        try:
            await engine.start()
        finally:
            await engine.stop()

    try:
        asyncio.run(once())
    except EngineDown as error:
        raise HotswapError(str(error)) from error
    logger.info("started and answered in %.1f s; compiled code is in %s", time.monotonic() - began, settings.cache)
    return 0


def _device(settings: Settings) -> Device | None:
    """Return what the engine computes on, if that is known, having looked at what it is asked for."""
    if settings.engine != "vllm":
        return None
    device = Device.found()
    if device is not None:
        sizing.check_count(settings, device)
    return device


def _sized(settings: Settings, device: Device, base: Base) -> Settings:
    model, float32 = sizing.Model.of(base.folder), in_float32(settings)
    sizing.check_size(settings, device, model, float32=float32)
    settings, choices = sizing.sized(settings, device, model, float32=float32)
    if choices:
        logger.info("chosen for %s:", device.name)
    for choice in choices:
        logger.info("  %s", choice)
    return settings


def _new_key(attributes: str) -> int:
    from service.http.keys import new_key

    key, line = new_key(attributes)
    print(f"key, for its holder; it is stored nowhere:\n  {key}\nline, for the file:\n  {line}")
    return 0


def with_rank(settings: Settings, store: Store, catalogue: Catalogue) -> Settings:
    """Start for the largest rank that is served now, and room above it."""
    if settings.max_lora_rank is not None:
        return settings
    ranks, versions = [0], set()
    for entry in catalogue:
        served = entry.release.versions if entry.release else ()
        versions |= {(entry.name, version) for version in (*served, *entry.versions[-1:])}
    store.read_manifests(versions)
    for name, version in versions:
        with suppress(HotswapError):  # a damaged version concerns its own requests, not the start
            ranks.append(store.manifest(name, version)[0].rank)
    return settings.model_copy(update={"max_lora_rank": rank_above(max(ranks))})


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise HotswapError(
            f"cannot listen on {host}:{port} ({_reason(error)}); set HOTSWAP_PORT or HOTSWAP_HOST."
        ) from None


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def _base(settings: Settings) -> Base:
    started = time.monotonic()
    base = resolve_base(settings.base_model, settings.cache, settings.revision)
    logger.info("base model %s (%.1f s)", base.name, time.monotonic() - started)
    return base


def _run(
    settings: Settings,
    keys: Keys,
    listener: socket.socket,
    store: Store,
    base: Base,
    names: list[str],
    began: float,
) -> int:
    import uvicorn
    from prometheus_client import start_http_server

    from service.app import create_app
    from service.http import connection
    from service.processes.fleet import Fleet

    engine = made(settings, base)
    server: uvicorn.Server

    def announce() -> None:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"http://{host}:{listener.getsockname()[1]}"
        logger.info("ready after %.1f s: %s (docs at %s/docs)", time.monotonic() - began, address, address)
        adapter = "sentiment" if "sentiment" in names or not names else names[0]
        key = " -H 'Authorization: Bearer KEY'" if settings.api_keys else ""
        text = "A moving, beautifully acted film."
        print(f"try: {TRY.format(address=address, key=key, adapter=adapter, text=text)}", flush=True)

    failed = threading.Event()

    def give_up() -> None:
        failed.set()
        server.should_exit = True

    fleet = Fleet(settings, store.place, base, listener) if (settings.api_processes or 1) > 1 else None
    app = create_app(settings, engine, store, base, keys=keys, on_ready=announce, on_failure=give_up, fleet=fleet)
    server = fleet.server(app) if fleet else connection.server(app, settings)
    if settings.metrics_port is not None:
        registry = fleet.registry if fleet else app.state.metrics.registry
        try:
            start_http_server(settings.metrics_port, settings.host, registry)
        except OSError as error:
            raise HotswapError(f"HOTSWAP_METRICS_PORT: cannot listen on it ({_reason(error)}).") from None
    launch.keep_from_forks()
    logger.info("starting the engine ...")
    # uvicorn drains, then raises the signal again: having done what it asked for is no failure.
    signal.signal(signal.SIGTERM, lambda *_: None)
    server.run(sockets=[listener])
    logger.info("stopped")
    return 1 if failed.is_set() else 0


if __name__ == "__main__":
    sys.exit(main(relaunch=True))
