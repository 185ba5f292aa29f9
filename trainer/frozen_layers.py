"""Layers below the first one that is trained give the same for a row at every pass: they are computed once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from peft import PeftModel

from adapters.progress import bar, say
from trainer.batches import Encoded, collate

# Decoders that put ``inputs_embeds`` before their first layer as they are; others scale them, or add positions.
KNOWN = ("llama", "mistral", "qwen2", "qwen3", "smollm3")


def frozen_below(model: Any) -> int:
    """Return how many of the first layers hold nothing that is trained; 0 where it is not known how to skip them."""
    if not isinstance(model, PeftModel) or model.config.model_type not in KNOWN:
        return 0
    trained = [any(p.requires_grad for p in layer.parameters()) for layer in _decoder(model).layers]
    return trained.index(True) if any(trained) else 0


def _decoder(model: PeftModel) -> Any:
    return model.get_base_model().model


class HiddenStates(torch.utils.data.Dataset):
    """What enters the first trained layer, for each row: (tokens, hidden size), in a file that is read as needed."""

    def __init__(
        self, encoded: Encoded, model: PeftModel, layers: int, path: Path, batch_size: int, *, bfloat16: bool = False
    ) -> None:
        """Compute them in the precision of the rest. The file holds rows one after the other, in float32, and lasts as
        long as this object: nothing is left of a training that is killed. Raises :class:`OSError` where the disk is
        full."""
        self.lengths = encoded.lengths
        self._wanted = [{key: example[key] for key in ("labels", "choices")} for example in encoded]
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        width = model.config.get_text_config().hidden_size
        order = sorted(range(len(encoded)), key=lambda i: self.lengths[i])
        with path.open("wb") as file, bar(len(order), "lower layers", "rows") as shown:
            file.truncate(int(self._starts[-1]) * width * 4)
            for start in range(0, len(order), batch_size):
                part = order[start : start + batch_size]
                batch = collate(0)([encoded[i] for i in part])
                with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
                    entering = _entering(model, layers, batch)
                for i, row in zip(part, entering, strict=True):
                    file.seek(int(self._starts[i]) * width * 4)
                    file.write(row[-self.lengths[i] :].float().cpu().numpy().tobytes())
                shown.update(len(part))
        self._rows = np.memmap(path, np.float32, mode="r").reshape(-1, width)
        path.unlink()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = self._rows[self._starts[index] : self._starts[index + 1]]
        return {"inputs_embeds": torch.from_numpy(np.array(rows)), **self._wanted[index]}


class _Reached(Exception):  # no error: the way out of a forward pass whose rest nobody needs
    pass


@torch.inference_mode()
def _entering(model: PeftModel, layers: int, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return what enters the layer after ``layers`` others: (rows, width, hidden size)."""
    caught: list[torch.Tensor] = []

    def stop(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        caught.append(given[0] if given else named["hidden_states"])
        raise _Reached

    hook = _decoder(model).layers[layers].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(**{key: batch[key].to(model.device) for key in ("input_ids", "attention_mask")})
    except _Reached:
        pass
    finally:
        hook.remove()
    return caught[0]


class _Skipped(torch.nn.Module):
    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self._layer = [layer]  # in a list: its weights are none of this module's
        for name in ("attention_type", "layer_type"):
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states


Rows = Encoded | HiddenStates


@contextmanager
def lower_layers_once(
    model: Any, parts: Sequence[Encoded], folder: Path, batch_size: int, *, bfloat16: bool
) -> Iterator[list[Rows]]:
    """Give the rows as the layers take them that are trained, and skip those below meanwhile; give them as they are
    where nothing can be skipped. What is kept of them lies in ``folder``."""
    layers = frozen_below(model) if PartialState().num_processes == 1 else 0
    for left in folder.glob("*.hidden"):  # by a training that was killed while it computed them
        left.unlink()
    if not layers or not _room_for(parts, model, folder):
        yield list(parts)
        return
    if torch.cuda.is_available():
        model.cuda()
    kept: list[Rows] = [
        HiddenStates(part, model, layers, folder / f"{number}.hidden", batch_size, bfloat16=bfloat16)
        for number, part in enumerate(parts)
    ]
    decoder = _decoder(model)
    own = list(decoder.layers)
    for number in range(layers):
        decoder.layers[number] = _Skipped(own[number])
    try:
        yield kept
    finally:
        for number in range(layers):
            decoder.layers[number] = own[number]


def _room_for(parts: Sequence[Encoded], model: Any, folder: Path) -> bool:
    """Whether what enters a layer may be kept for all rows: a quarter of the disk's free space is theirs at most."""
    needed = sum(sum(part.lengths) for part in parts) * model.config.get_text_config().hidden_size * 4
    if 4 * needed <= (free := shutil.disk_usage(folder).free):
        return True
    say(f"the lower layers are computed at every pass: to keep them takes {needed >> 20} MiB, of {free >> 20} MiB free")
    return False
