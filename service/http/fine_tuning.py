"""A fine-tuning job as OpenAI's client sends it (``client.fine_tuning.jobs.create``), and as it reads it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr, model_validator

from adapters.text import public

Auto = Literal["auto"]
FileId = Annotated[StrictStr, Field(max_length=64, examples=["file-01m8ezxvkjdb06j3th4f2azy56"])]


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("a text here holds no NUL")
    return text


Key = Annotated[StrictStr, Field(min_length=1, max_length=64), AfterValidator(_no_nul)]
Value = Annotated[StrictStr, Field(max_length=512), AfterValidator(_no_nul)]
Metadata = Annotated[dict[Key, Value], Field(max_length=16)]


class Hyperparameters(BaseModel):
    """What is ``auto`` is left to the trainer."""

    model_config = ConfigDict(extra="forbid")

    n_epochs: Auto | Annotated[StrictInt, Field(ge=1, le=50)] = "auto"
    batch_size: Auto | Annotated[StrictInt, Field(ge=1, le=256)] = "auto"
    learning_rate_multiplier: Auto | Annotated[StrictFloat | StrictInt, Field(gt=0, le=100)] = "auto"


class DpoHyperparameters(Hyperparameters):
    beta: Auto | Annotated[StrictFloat | StrictInt, Field(gt=0, le=2)] = "auto"


class Supervised(BaseModel):
    model_config = ConfigDict(extra="forbid")

    hyperparameters: Hyperparameters | None = None


class Dpo(BaseModel):
    model_config = ConfigDict(extra="forbid")

    hyperparameters: DpoHyperparameters | None = None


class Method(BaseModel):
    """Reinforcement fine-tuning is not offered: its graders are models of OpenAI's, or code."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["supervised", "dpo"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.type == "dpo" and self.supervised) or (self.type == "supervised" and self.dpo):
            raise ValueError(f"type is {self.type}, and what is given is of another method")
        return self

    @property
    def chosen(self) -> Hyperparameters:
        given = self.dpo if self.type == "dpo" else self.supervised
        default = DpoHyperparameters() if self.type == "dpo" else Hyperparameters()
        return (given.hyperparameters if given else None) or default


class JobRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: Annotated[StrictStr, Field(max_length=200, description="the base's id, or an adapter to go on from")]
    training_file: FileId
    validation_file: FileId | None = None
    suffix: Annotated[StrictStr, Field(max_length=64, description="the adapter's name")] | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=2**31)] | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    metadata: Metadata | None = None
    integrations: Annotated[list[Any], Field(max_length=0)] | None = None

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        if self.hyperparameters is not None and self.method is not None:
            raise ValueError("hyperparameters belong into method; give them there alone")
        return self

    @property
    def told(self) -> dict[str, Any]:
        """The method as a job keeps it: its type, and each hyperparameter."""
        method = self.method or Method(type="supervised")
        chosen = self.hyperparameters or method.chosen
        return {"type": method.type, "hyperparameters": chosen.model_dump()}


def job(row: dict[str, Any]) -> dict[str, Any]:
    """Return a job of the queue as OpenAI's client reads it."""
    kind, chosen = row["method"]["type"], row["method"]["hyperparameters"]
    error = row["error"] and {**row["error"], "message": public(row["error"]["message"])}
    return {
        "id": row["id"],
        "object": "fine_tuning.job",
        "created_at": row["created_at"],
        "error": error,
        "fine_tuned_model": row["fine_tuned_model"],
        "finished_at": row["finished_at"],
        "hyperparameters": {key: value for key, value in chosen.items() if key != "beta"},
        "model": row["model"],
        "organization_id": row["owner"],
        "result_files": [],
        "seed": row["seed"],
        "status": row["status"],
        "trained_tokens": row["trained_tokens"],
        "training_file": row["training_file"],
        "validation_file": row["validation_file"],
        "estimated_finish": row["estimated_finish"],
        "integrations": [],
        "metadata": row["metadata"],
        "method": {"type": kind, kind: {"hyperparameters": chosen}},
        "user_provided_suffix": row["adapter"],
    }


def event(row: dict[str, Any]) -> dict[str, Any]:
    shown = {key: row[key] for key in ("id", "created_at", "level", "type", "data")}
    return {**shown, "object": "fine_tuning.job.event", "message": public(row["message"])}


def checkpoints(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the checkpoint that can be asked: the one that was published."""
    if row["status"] != "succeeded":
        return []
    found = row["result"] or {}
    return [
        {
            "id": row["id"].replace("ftjob-", "ftckpt-"),
            "object": "fine_tuning.job.checkpoint",
            "created_at": row["finished_at"],
            "fine_tuned_model_checkpoint": row["fine_tuned_model"],
            "fine_tuning_job_id": row["id"],
            "metrics": {"step": found.get("steps"), **{k: found.get(k) for k in ("train_loss", "valid_loss")}},
            "step_number": found.get("steps") or 0,
        }
    ]


def file(row: dict[str, Any]) -> dict[str, Any]:
    shown = {key: row[key] for key in ("id", "bytes", "created_at", "filename")}
    return {**shown, "object": "file", "purpose": "fine-tune", "status": "processed", "status_details": None}


def page(rows: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    first, last = (rows[0]["id"], rows[-1]["id"]) if rows else (None, None)
    return {"object": "list", "data": rows, "has_more": more, "first_id": first, "last_id": last}
