"""The copy of a LoRA as it began, ``ref``, which TRL keeps beside the one that is trained and compares with."""

from __future__ import annotations

from typing import Any

from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

REFERENCE = "ref"


class BesideReference:
    """For a trainer whose checkpoints hold the reference in a folder of its own: transformers' Trainer would take up
    the folder, and leave the LoRA that is trained as it began."""

    model: Any

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        set_peft_model_state_dict(self.model, load_peft_weights(resume_from_checkpoint), "default")


def without_reference(model: Any) -> Any:
    """Take the reference away."""
    if isinstance(model, PeftModel) and REFERENCE in model.peft_config:
        model.delete_adapter(REFERENCE)
    return model
