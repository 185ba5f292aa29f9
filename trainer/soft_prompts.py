"""Learnt vectors in front of a prompt, where the server puts them: right before its first token, after the padding."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel

Inputs = dict[str, torch.Tensor]


def has_soft_prompt(model: Any) -> bool:
    """Whether vectors in front of the prompt are what ``model`` has learnt (a prefix is none: it is in the layers)."""
    if not isinstance(model, PeftModel) or getattr(model, "_adapters_disabled", False):
        return False
    learnt = model.active_peft_config
    return bool(learnt.is_prompt_learning and learnt.peft_type != "PREFIX_TUNING")


def spelled(model: Any, inputs: Inputs) -> tuple[Any, Inputs]:
    """Return which model to call with what for ``inputs``: ``input_ids`` and ``attention_mask``, (rows, width), padded
    on the left.

    PEFT itself puts the vectors before the padding. Then their distance to the text, which the model reads by rotary
    position, would depend on what else is in the batch, and be another than in the server, which does not pad.
    """
    if not has_soft_prompt(model):
        return model, inputs
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    base, rows = model.get_base_model(), len(ids)
    prompts = model.get_prompt(batch_size=rows)
    count = prompts.shape[1]
    wide = torch.nn.functional.pad(ids, (count, 0), value=int(ids[0, -1]))
    longer = torch.nn.functional.pad(mask, (count, 0))
    places = (longer == 0).sum(dim=1, keepdim=True) - count + torch.arange(count, device=ids.device)
    here = torch.arange(rows, device=ids.device)[:, None]
    embedded = base.get_input_embeddings()(wide).index_put((here, places), prompts.to(base.dtype))
    return base, {"inputs_embeds": embedded, "attention_mask": longer.index_put((here, places), longer.new_ones(()))}
