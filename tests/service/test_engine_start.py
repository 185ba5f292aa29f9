"""What an engine that starts leaves behind, and what one that does not start says."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError, field_validator

from adapters.lint import lint
from adapters.modules import base_shapes
from service.engine import caches, dummies, failure

DIGEST = "sha256:" + "a" * 64


class TestCompiledCode:
    def test_lies_in_the_cache_by_base(self, tmp_path: Path) -> None:
        one, other = (caches.environment(tmp_path, digest) for digest in (DIGEST, DIGEST.replace("a", "b")))
        assert one == caches.environment(tmp_path, DIGEST)
        assert all(Path(place).is_relative_to(tmp_path / "compiled") for place in one.values())
        assert one["TRITON_CACHE_DIR"] != other["TRITON_CACHE_DIR"]

    def test_of_another_library_or_driver_lies_elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        places = [caches.environment(tmp_path, DIGEST)]
        monkeypatch.setattr(caches, "version", lambda name: "99")
        places.append(caches.environment(tmp_path, DIGEST))
        driver = tmp_path / "version"
        driver.write_text("NVRM version: 580.1\nGCC version: 12\n")
        monkeypatch.setattr(caches, "DRIVER", driver)
        places.append(caches.environment(tmp_path, DIGEST))
        assert len({place["VLLM_CACHE_ROOT"] for place in places}) == 3


class TestAWarmUp:
    def test_touches_every_matrix_of_a_layer(self, tiny_folder: Path, tmp_path: Path) -> None:
        folder = dummies.lora(tmp_path / "lora", tiny_folder)
        with pytest.raises(Exception, match="every lora_B is zero") as refused:
            lint(folder, shapes=base_shapes(tiny_folder))
        assert ";" not in str(refused.value)  # nothing else is wrong with it

    def test_puts_vectors_of_the_base_s_width_in_front(self, tiny_folder: Path, tmp_path: Path) -> None:
        with pytest.raises(Exception, match="every prompt_embeddings is zero"):
            lint(dummies.prompt(tmp_path / "prompt", tiny_folder), shapes=base_shapes(tiny_folder))


def logged(file: str, raised: str) -> str:
    """Return what a process of vLLM logs when it ends with an exception."""
    frame = f'  File "/venv/site-packages/{file}", line 10, in start\n    raise\n'
    again = '  File "/venv/site-packages/vllm/v1/engine/core.py", line 1, in run\n    raise\nRuntimeError: it follows\n'
    return f"EngineCore failed to start.\nTraceback (most recent call last):\n{frame}{raised}\n\n{again}"


FOLLOWS = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")


class TestAFailure:
    @pytest.mark.parametrize(
        ("file", "raised"),
        [
            ("torch/nn/modules/module.py", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
            ("vllm/v1/core/kv_cache_utils.py", "ValueError: No available memory for the cache blocks."),
            ("vllm/v1/worker/utils.py", "ValueError: Free memory on device cuda:0 (3/80 GiB) is less than desired"),
        ],
    )
    def test_for_want_of_memory_says_what_to_lower(self, file: str, raised: str) -> None:
        said = failure.explained(FOLLOWS, logged(file, raised), on_cpu=False)
        assert said.startswith("out of memory: lower HOTSWAP_MAX_MODEL_LEN, HOTSWAP_MAX_LORAS")
        assert "HOTSWAP_GPU_MEMORY_SHARE" in said
        assert raised.partition(": ")[2] in said
        assert "HOTSWAP_KV_CACHE_GIB" in failure.explained(FOLLOWS, logged(file, raised), on_cpu=True)

    def test_for_another_reason_says_which(self) -> None:
        said = failure.explained(
            FOLLOWS, logged("vllm/lora.py", "ValueError: NoSuch does not support LoRA"), on_cpu=False
        )
        assert said == "vLLM did not start: NoSuch does not support LoRA"

    def test_that_nobody_logged_is_said_as_it_came(self) -> None:
        assert failure.explained(FOLLOWS, "", on_cpu=True).endswith("See root cause above. Failed core proc(s): {}")

    def test_of_a_config_is_one_line_with_its_cause(self) -> None:
        class Config(BaseModel):
            model: str

            @field_validator("model")
            @classmethod
            def _refuse(cls, model: str) -> str:
                raise ValueError(f"{model}\ncould not be inspected")

        with pytest.raises(ValidationError) as refused:
            Config(model="Gemma3")
        said = failure.explained(refused.value, "ModuleNotFoundError: No module named 'torchvision'\n", on_cpu=True)
        assert said == (
            "vLLM did not start: Gemma3 could not be inspected (ModuleNotFoundError: No module named 'torchvision')"
        )

    def test_is_as_long_as_a_line(self) -> None:
        said = failure.explained(FOLLOWS, logged("x.py", f"ValueError: {'long ' * 1000}"), on_cpu=True)
        assert len(said) < 500
        assert "\n" not in said

    def test_is_read_from_where_vllm_was_told_to_write(self) -> None:
        path = Path(failure.log_config("ERROR")["VLLM_LOGGING_CONFIG_PATH"])
        assert str(failure.log()) in path.read_text()
        failure.log().write_text("ValueError: of an earlier start\n")
        failure.log_config("ERROR")
        assert failure.read() == ""
