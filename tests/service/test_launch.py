"""How the engine's processes are started: preloaded libraries, threads, and when our platform stands in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adapters.errors import HotswapError
from service.engine import launch, plugin
from service.settings import Settings


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment with nothing in it, on a machine of two CPUs without a quota."""
    empty: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", empty)
    monkeypatch.setattr(launch, "CPUS", {0, 1})
    monkeypatch.setattr(launch, "_cgroup_quota", lambda: None)
    monkeypatch.setattr(launch, "is_cpu", lambda: True)
    return empty


def test_nothing_is_compiled_on_a_cpu_for_not_every_machine_has_a_compiler(environment: dict[str, str]) -> None:
    launch.prepare(Settings())
    assert environment["TORCHDYNAMO_DISABLE"] == "1"


def test_on_a_small_machine_every_cpu_computes(environment: dict[str, str]) -> None:
    launch.prepare(Settings())
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "0,1"


def test_under_a_quota_threads_are_bound_to_no_cpu(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "CPUS", set(range(32)))
    monkeypatch.setattr(launch, "_cgroup_quota", lambda: 3)
    launch.prepare(Settings())
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert not {"KMP_AFFINITY", "GOMP_CPU_AFFINITY"} & set(environment)


def test_on_a_large_machine_the_choice_is_vllms(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "CPUS", set(range(32)))
    launch.prepare(Settings())
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "auto"
    assert not launch.threads_are_set()


@pytest.mark.parametrize(("binding", "threads"), [("0", "1"), ("0-1", "2"), ("0,2-5", "5"), ("nobind", "2")])
def test_what_the_operator_binds_holds(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, binding: str, threads: str
) -> None:
    if binding != "nobind":
        monkeypatch.setattr(launch, "CPUS", set(range(8)))
    environment["VLLM_CPU_OMP_THREADS_BIND"] = binding
    launch.prepare(Settings())
    assert environment["OMP_NUM_THREADS"] == threads
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == binding


@pytest.mark.parametrize("binding", ["all", "0-", "0;1", "", "1-0", "0,0", "0,99"])
def test_a_binding_that_is_none_says_what_one_is(environment: dict[str, str], binding: str) -> None:
    environment["VLLM_CPU_OMP_THREADS_BIND"] = binding
    with pytest.raises(HotswapError, match=r"as in 0-3"):
        launch.prepare(Settings())


def test_libraries_are_added_to_what_is_preloaded_already_and_only_once(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_libraries", lambda: ["/lib/libiomp5.so"])
    environment["LD_PRELOAD"] = "/lib/other.so"
    launch.prepare(Settings())
    launch.prepare(Settings())
    assert environment["LD_PRELOAD"] == "/lib/other.so:/lib/libiomp5.so"


def test_without_any_library_nothing_is_preloaded_and_nothing_forks(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_intel_openmp", lambda: None)
    monkeypatch.setattr(launch, "_libraries", list)
    environment[launch.PRELOADED] = "1"
    launch.prepare(Settings())
    assert "LD_PRELOAD" not in environment
    assert environment["GOMP_CPU_AFFINITY"] == "0 1"
    assert not launch.may_fork()


def test_a_library_that_is_only_named_is_not_preloaded(environment: dict[str, str]) -> None:
    environment["LD_PRELOAD"] = "/lib/libiomp5.so"
    assert not launch.may_fork()
    environment[launch.PRELOADED] = "1"
    assert launch.may_fork()


def test_a_program_is_started_again_once_with_its_own_arguments(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, tmp_path: Path
) -> None:
    settings = Settings(base_model=str(tiny_folder), cache=tmp_path)
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda _, arguments, given: started.append((arguments, given)))
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "service"])
    launch.relaunch(settings)
    environment.update(started[0][1])
    launch.relaunch(settings)
    assert len(started) == 1
    assert started[0][0][1:] == ["-m", "service"]


@pytest.mark.parametrize(
    ("installed", "stands_in"), [("0.32.0", True), ("0.31.9", False), ("0.33.0", False), (None, False)]
)
def test_our_platform_stands_in_for_tested_cpu_builds_only(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, installed: str | None, stands_in: bool
) -> None:
    monkeypatch.setattr(plugin, "_cpu_build", lambda: installed)
    environment[plugin.SWITCH] = "grouped"
    assert (plugin.cpu_platform() is not None) is stands_in
    assert (plugin.why_stock() is None) is stands_in


def test_a_vllm_that_is_not_ours_is_left_as_it_is(environment: dict[str, str]) -> None:
    assert plugin.cpu_platform() is None


def test_the_entry_point_is_installed() -> None:
    from importlib.metadata import entry_points

    (point,) = entry_points(group="vllm.platform_plugins", name="hotswap")
    assert point.load() is plugin.cpu_platform


def test_preloaded_libraries_exist() -> None:
    assert all(Path(library).is_file() or library.startswith("libtcmalloc") for library in launch._libraries())
