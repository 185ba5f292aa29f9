"""Settings: typed, read once, loud about mistakes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import service.__main__
from adapters.errors import HotswapError
from service.engine.base import EngineDown, Limits
from service.engine.fake import FakeEngine
from service.keys import check_exposure
from service.settings import Settings


def test_the_defaults_listen_on_this_machine_only() -> None:
    settings = Settings.read({})
    assert (settings.host, settings.port, settings.max_lora_rank) == ("127.0.0.1", 8000, 16)


def test_variables_become_typed_values() -> None:
    settings = Settings.read({"HOTSWAP_PORT": "9000", "HOTSWAP_MAX_LORA_RANK": "64", "PATH": "/bin"})
    assert (settings.port, settings.max_lora_rank) == (9000, 64)


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("HOTSWAP_MAX_LORA", "3", "did you mean HOTSWAP_MAX_LORAS"),
        ("HOTSWAP_PORT", "http", "HOTSWAP_PORT"),
        ("HOTSWAP_MAX_LORA_RANK", "17", "HOTSWAP_MAX_LORA_RANK"),
        ("HOTSWAP_MAX_LORAS", "0", "HOTSWAP_MAX_LORAS"),
    ],
)
def test_a_mistake_names_the_variable(name: str, value: str, hint: str) -> None:
    with pytest.raises(HotswapError, match=hint):
        Settings.read({name: value})


def test_the_command_refuses_with_one_line_and_status_1() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service"], env={"HOTSWAP_PORTS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "HOTSWAP_PORT?" in done.stderr


def test_help_lists_every_setting() -> None:
    done = subprocess.run([sys.executable, "-m", "service", "--help"], capture_output=True, text=True, check=True)
    assert all(f"HOTSWAP_{name.upper()}" in done.stdout for name in Settings.model_fields)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_on_loopback_no_key_is_needed(host: str) -> None:
    check_exposure(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_beyond_loopback_keys_are_needed(host: str, tmp_path) -> None:
    with pytest.raises(HotswapError, match="HOTSWAP_API_KEYS"):
        check_exposure(host, None)
    check_exposure(host, tmp_path / "keys")


def test_a_port_that_is_taken_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = {**os.environ, "HOTSWAP_PORT": str(taken.getsockname()[1])}
        done = subprocess.run(
            [sys.executable, "-m", "service"], env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "HOTSWAP_PORT" in done.stderr


@pytest.mark.parametrize("error", [EngineDown("no memory"), RuntimeError("a surprise")])
def test_an_engine_that_does_not_start_ends_the_process_with_status_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folder: Path, error: Exception
) -> None:
    class Broken(FakeEngine):
        async def start(self) -> None:
            raise error

    given = {"PORT": "0", "STORE": tmp_path / "store", "CACHE": tmp_path, "BASE_MODEL": tiny_folder}
    for name, value in given.items():
        monkeypatch.setenv(f"HOTSWAP_{name}", str(value))
    monkeypatch.setattr("sys.argv", ["service"])
    monkeypatch.setattr("service.__main__._engine", lambda _, base: Broken(Limits(1, 8, 64), base))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert service.__main__.main() == 1
    finally:
        signal.signal(signal.SIGTERM, before)
