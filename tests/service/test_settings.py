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
from adapters.intake import add_version
from adapters.releases import NewRelease
from adapters.store import Store
from service.engine.base import EngineDown, Limits
from service.engine.fake import FakeEngine
from service.http.keys import anonymous
from service.settings import Settings, rank_above
from tests.conftest import MakeAdapter


def test_a_variable_of_another_command_is_passed_by() -> None:
    assert Settings.read({"HOTSWAP_SIGNING_KEY": "team.pem"}) == Settings.read({})


def test_the_defaults_listen_on_this_machine_only() -> None:
    settings = Settings.read({})
    assert (settings.host, settings.port, settings.max_resident) == ("127.0.0.1", 8000, 64)


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
        ("HOTSWAP_TRUSTED_KEY", "team.pub", "did you mean HOTSWAP_TRUSTED_KEYS"),
    ],
)
def test_a_mistake_names_the_variable(name: str, value: str, hint: str) -> None:
    with pytest.raises(HotswapError, match=hint):
        Settings.read({name: value})


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ({"MAX_LORAS": "8", "MAX_CPU_LORAS": "4"}, r"MAX_CPU_LORAS \(4\) is below HOTSWAP_MAX_LORAS \(8\).*raise"),
        ({"CHUNKED_PREFILL": "false", "MAX_MODEL_LEN": "4096"}, "needs HOTSWAP_MAX_BATCHED_TOKENS of at least .*4096"),
        ({"MAX_CONCURRENCY": "4096"}, r"MAX_BATCHED_TOKENS \(2048\) is below HOTSWAP_MAX_CONCURRENCY"),
    ],
)
def test_settings_that_contradict_each_other_say_what_to_change(given: dict[str, str], advice: str) -> None:
    with pytest.raises(HotswapError, match=advice):
        Settings.read({f"HOTSWAP_{name}": value for name, value in given.items()})


def test_more_slots_in_a_batch_mean_room_for_as_many() -> None:
    assert Settings.read({"HOTSWAP_MAX_LORAS": "100"}).max_resident == 100


@pytest.mark.parametrize(("largest", "rank"), [(0, 16), (8, 16), (16, 32), (17, 32), (64, 128), (512, 512)])
def test_the_engine_is_started_with_room_above_the_largest_rank(largest: int, rank: int) -> None:
    assert rank_above(largest) == rank


def test_the_rank_is_taken_from_what_the_store_has(
    store: Store, make_adapter: MakeAdapter, tiny, sentiment_task
) -> None:
    for seed, rank in ((1, 4), (2, 24)):
        add_version(store, "mood", make_adapter(seed=seed, rank=rank), sentiment_task, tiny)
    store.release("mood", NewRelease(stable=1))
    assert service.__main__.with_rank(Settings(), store, store.catalogue()).max_lora_rank == 32
    assert service.__main__.with_rank(Settings(max_lora_rank=8), store, store.catalogue()).max_lora_rank == 8


def test_the_command_refuses_with_one_line_and_status_1() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service"], env={"HOTSWAP_PORTS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "HOTSWAP_PORT?" in done.stderr


def test_keys_that_cannot_be_trusted_end_the_start_with_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "HOTSWAP_PORT": "0", "HOTSWAP_TRUSTED_KEYS": str(tmp_path / "typo.pub")}
    done = subprocess.run(
        [sys.executable, "-m", "service"], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "typo.pub cannot be read" in done.stderr


def test_help_lists_every_setting() -> None:
    done = subprocess.run([sys.executable, "-m", "service", "--help"], capture_output=True, text=True, check=True)
    assert all(f"HOTSWAP_{name.upper()}" in done.stdout for name in Settings.model_fields)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_on_loopback_no_key_is_needed(host: str) -> None:
    assert anonymous(host, None, False).scopes == {"predict", "feedback", "admin"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_beyond_loopback_keys_are_needed(host: str, tmp_path) -> None:
    with pytest.raises(HotswapError, match="HOTSWAP_API_KEYS"):
        anonymous(host, None, False)
    anonymous(host, tmp_path / "keys", False)


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


def test_variables_that_kubernetes_sets_for_a_service_of_our_name_are_no_settings() -> None:
    links = {
        "HOTSWAP_SERVICE_HOST": "10.0.0.1",
        "HOTSWAP_SERVICE_PORT": "80",
        "HOTSWAP_SERVICE_PORT_HTTP": "80",
        "HOTSWAP_PORT": "tcp://10.0.0.1:80",
        "HOTSWAP_PORT_80_TCP": "tcp://10.0.0.1:80",
        "HOTSWAP_PORT_80_TCP_PROTO": "tcp",
        "HOTSWAP_PORT_80_TCP_PORT": "80",
        "HOTSWAP_PORT_80_TCP_ADDR": "10.0.0.1",
        "HOTSWAP_METRICS_PORT": "tcp://10.0.0.2:9000",  # of a Service named hotswap-metrics
        "HOTSWAP_CANARY_SERVICE_HOST": "10.0.0.3",
    }
    assert Settings.read(links) == Settings.read({})
    assert Settings.read({**links, "HOTSWAP_PORT": "9001", "HOTSWAP_METRICS_PORT": "9000"}).metrics_port == 9000
