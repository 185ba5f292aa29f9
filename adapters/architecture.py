"""What ``config.json`` says of a base, whatever its family calls it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adapters.errors import HotswapError

# What older families call what the others agree on.
ALSO = {
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
    "hidden_size": ("n_embd", "d_model"),
    "max_position_embeddings": ("n_positions", "n_ctx", "max_seq_len", "max_sequence_length"),
}
# Layers that keep no keys and values, by their names in ``layer_types``.
STATEFUL = ("mamba", "linear_attention", "recurrent", "conv")


@dataclass(frozen=True)
class Architecture:
    """The language model of a base; beside a vision tower its settings are nested in ``text_config``."""

    config: Mapping[str, Any]

    @classmethod
    def of(cls, folder: Path) -> Architecture:
        """Read a checkpoint's. Raises :class:`HotswapError` for a file that is none."""
        try:
            config = json.loads((folder / "config.json").read_bytes())
        except ValueError:
            config = None
        if not isinstance(config, dict):
            raise HotswapError(f"{folder}/config.json is not a JSON object; fetch or save the model again.")
        return cls(config)

    @cached_property
    def text(self) -> Mapping[str, Any]:
        """The settings of the language model."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config

    @property
    def is_nested(self) -> bool:
        return self.text is not self.config

    @property
    def family(self) -> str | None:
        """What transformers calls it: llama, qwen2, gemma3 …"""
        return self.config.get("model_type")

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that can hold its weights, such as ``LlamaForCausalLM``."""
        return tuple(self.config.get("architectures") or ())

    @property
    def quantized(self) -> str | None:
        """How its weights are packed (gptq, awq, fp8, compressed-tensors …); None where they are as trained."""
        how = self.packing
        return str(how.get("quant_method") or "unknown") if how is not None else None

    @property
    def has_int8_activations(self) -> bool:
        """Whether what goes through its layers is rounded to 8 bits as well (W8A8), in compressed-tensors' terms."""
        groups = (self.packing or {}).get("config_groups")
        rounded = [group.get("input_activations") for group in groups.values()] if isinstance(groups, dict) else []
        return any(isinstance(how, dict) and how.get("type") == "int" for how in rounded)

    @property
    def packing(self) -> dict[str, Any] | None:
        """How its weights are packed, in the words of what packed them."""
        how = self.config.get("quantization_config") or self.text.get("quantization_config")
        return how if isinstance(how, dict) else None

    @property
    def has_experts(self) -> bool:
        """Whether a token goes through a few of many feed-forward networks."""
        counts = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
        return any(_number(self.text.get(name)) for name in counts)

    @property
    def longest(self) -> int | None:
        """Tokens that it was trained to read at most."""
        return self._number("max_position_embeddings")

    @property
    def hidden(self) -> int | None:
        return self._number("hidden_size")

    @property
    def layers(self) -> int | None:
        return self._number("num_hidden_layers")

    @property
    def inner(self) -> int | None:
        """The width between a feed-forward network's matrices."""
        return self._number("intermediate_size") or (4 * self.hidden if self.hidden else None)

    def cached_numbers(self, tokens: int) -> int | None:
        """Return how many numbers the keys and values of a text of so many tokens are; None where it is not known."""
        heads, layers, hidden = self._number("num_attention_heads"), self.layers, self.hidden
        if not heads or not layers or not hidden or "kv_lora_rank" in self.text:
            return None
        width = self._number("head_dim") or hidden // heads
        window, kinds = self._number("sliding_window"), self.text.get("layer_types")
        kept = 0
        for kind in kinds if isinstance(kinds, list) else ["full_attention"] * layers:
            if not any(name in str(kind) for name in STATEFUL):
                kept += min(tokens, window) if window and "sliding" in str(kind) else tokens
        return 2 * (self._number("num_key_value_heads") or heads) * width * kept

    def _number(self, name: str) -> int | None:
        return next((n for key in (name, *ALSO.get(name, ())) if (n := _number(self.text.get(key)))), None)


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
