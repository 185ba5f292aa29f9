"""What is chosen for a machine: arithmetic over facts, so that no GPU is needed to see it."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.architecture import Architecture
from adapters.errors import HotswapError
from service.engine.device import Device, of_rows
from service.engine.sizing import GIB, Model, check_count, check_size, sized
from service.settings import Settings

EIGHT_B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}


def model(billions: float = 8, **config: Any) -> Model:
    """A Llama of so many billion numbers in bfloat16; 2.6 million of them per rank in an adapter."""
    numbers = int(billions * 1e9)
    return Model(2 * numbers, numbers, 2_600_000, Architecture(EIGHT_B | config))


def gpu(gib: float = 80, count: int = 1, host: float = 256) -> Device:
    return Device("gpu", "a GPU", count, int(gib * GIB), int(host * GIB))


CPU = Device("cpu", "this machine's CPU", 1, 16 * GIB, 16 * GIB)


def chosen(device: Device, of: Model, **given: Any) -> Settings:
    return sized(Settings(**given), device, of, float32=False)[0]


def test_on_a_cpu_all_is_as_it_was_set() -> None:
    assert sized(Settings(), CPU, model(), float32=True) == (Settings(), [])


def test_a_base_that_reads_less_than_the_default_is_not_asked_for_more() -> None:
    settings, lines = sized(Settings(), CPU, model(max_position_embeddings=1024), float32=True)
    assert settings.max_model_len == 1024
    assert lines == ["HOTSWAP_MAX_MODEL_LEN=1024: what the base was made for"]


def test_a_large_gpu_reads_what_the_base_was_made_for_and_much_at_once() -> None:
    settings = chosen(gpu(141), model())
    assert (settings.max_model_len, settings.max_concurrency, settings.max_batched_tokens) == (131072, 256, 8192)
    assert (settings.max_loras, settings.max_resident) == (32, 330)


def test_a_small_one_reads_less() -> None:
    settings = chosen(gpu(24), model())
    assert 2048 <= settings.max_model_len < 16384
    assert (settings.max_batched_tokens, settings.max_loras < 32) == (4096, True)


def test_what_somebody_has_set_stays() -> None:
    given = {"max_loras": 3, "max_cpu_loras": 5, "max_model_len": 512, "max_concurrency": 9, "max_batched_tokens": 600}
    given["api_processes"] = 2
    settings, lines = sized(Settings(**given), gpu(), model(), float32=False)
    assert {name: getattr(settings, name) for name in given} == given
    assert lines == []


def test_slots_follow_the_ranks_in_the_store() -> None:
    slots = [chosen(gpu(48), model(), max_lora_rank=rank).max_loras for rank in (16, 64, 320)]
    assert slots == sorted(slots, reverse=True)
    assert slots[0] > slots[-1] >= 1


def test_slots_never_exceed_the_residents_that_somebody_set() -> None:
    assert chosen(gpu(), model(), max_cpu_loras=20).max_loras == 20


def test_more_gpus_to_a_layer_leave_more_room() -> None:
    assert chosen(gpu(24, 2), model(), tensor_parallel=2).max_model_len > chosen(gpu(24), model()).max_model_len


def test_half_the_width_of_the_cache_holds_twice_the_tokens() -> None:
    one, two = (chosen(gpu(24), model(), kv_cache_dtype=how).max_model_len for how in ("auto", "fp8"))
    assert two == pytest.approx(2 * one, rel=0.02)


def test_each_choice_says_why() -> None:
    _, lines = sized(Settings(), gpu(), model(), float32=False)
    assert [line.partition("=")[0] for line in lines] == [
        f"HOTSWAP_{name}"
        for name in [
            *("MAX_LORAS", "MAX_CPU_LORAS", "MAX_MODEL_LEN", "MAX_CONCURRENCY", "MAX_BATCHED_TOKENS", "API_PROCESSES")
        ]
    ]
    assert all(": " in line for line in lines)


@pytest.mark.parametrize("float32", [True, False])
def test_whatever_the_base_and_the_gpu_the_settings_go_together(float32: bool) -> None:
    for gib in (12, 24, 48, 80, 141):
        for given in ({}, {"chunked_prefill": False}, {"max_concurrency": 2048}, {"warm": ("a", "b")}):
            settings, _ = sized(Settings(**given), gpu(gib), model(1), float32=float32)
            assert Settings.model_validate(settings.model_dump())


@pytest.mark.parametrize(
    ("given", "device", "advice"),
    [
        ({"tensor_parallel": 2}, gpu(), "HOTSWAP_TENSOR_PARALLEL=2 needs 2 GPUs, and 1 can be seen here; lower it"),
        (
            {"tensor_parallel": 2, "data_parallel": 2},
            gpu(count=2),
            "HOTSWAP_TENSOR_PARALLEL=2 x HOTSWAP_DATA_PARALLEL=2 needs 4 GPUs, and 2 can be seen",
        ),
        ({}, gpu(count=0), "the engine needs a GPU, and none can be seen here"),
        ({"pipeline_parallel": 2}, CPU, "are for GPUs, and vLLM computes on this machine's CPU here; leave them at 1"),
    ],
)
def test_more_devices_than_there_are_are_refused(given: dict[str, int], device: Device, advice: str) -> None:
    with pytest.raises(HotswapError, match=advice):
        check_count(Settings(**given), device)


def test_as_many_as_there_are_are_not() -> None:
    check_count(Settings(tensor_parallel=2), gpu(count=2))
    check_count(Settings(), CPU)


@pytest.mark.parametrize(
    ("device", "billions", "advice"),
    [
        (gpu(80), 70, r"needs 133.4 GiB on each GPU, and 72.0 GiB may be used there; raise HOTSWAP_TENSOR_PARALLEL"),
        (CPU, 8, r"need 30.8 GiB, and this machine has 16.0 GiB; take a smaller base"),
    ],
)
def test_a_base_that_is_too_large_says_what_to_do(device: Device, billions: float, advice: str) -> None:
    with pytest.raises(HotswapError, match=advice):
        check_size(Settings(), device, model(billions), float32=device.kind == "cpu")
    check_size(Settings(), device, model(1), float32=device.kind == "cpu")


def test_packed_weights_are_counted_as_they_lie() -> None:
    packed = model(70, quantization_config={"quant_method": "gptq"})
    assert packed.bytes_of(float32=True) == packed.weights


def test_gpus_are_those_that_nvidia_smi_lists() -> None:
    found = of_rows([["NVIDIA H100", "81559", "580.1"], ["NVIDIA H100", "81000", "580.1"]], 64 * GIB)
    assert (found.name, found.count, found.memory, found.driver) == ("NVIDIA H100", 2, 81000 * 2**20, "580.1")
    assert of_rows([], GIB).count == 0


@pytest.mark.parametrize(
    ("cores", "given", "processes"),
    [(2, {}, 1), (8, {}, 2), (16, {}, 4), (64, {}, 4), (64, {"max_concurrency": 3}, 3), (64, {"data_parallel": 2}, 1)],
)
def test_api_processes_follow_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, given: dict[str, int], processes: int
) -> None:
    monkeypatch.setattr("service.engine.sizing.cpus", lambda: cores)
    assert chosen(gpu(count=2), model(), **given).api_processes == processes
    assert sized(Settings(), CPU, model(), float32=True)[0].api_processes is None
