"""What the process that does a job is told: all of it, so that it need not ask the database."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from adapters.jobs.place import Place
from trainer.runs import write_whole

FILE, RECIPE, ROWS, VALIDATION, RUN = "order.json", "recipe.yaml", "rows.jsonl", "validation.jsonl", "run"
AutoRelease = Literal["none", "canary", "guarded"]


class Order(BaseModel):
    """A job: its files' paths, and the hyperparameters that were not left to us."""

    model_config = ConfigDict(frozen=True)

    id: str
    owner: str
    adapter: str
    start_from: str | None
    release: AutoRelease
    training: Path
    validation: Path | None
    objective: Literal["supervised", "dpo"]
    epochs: float | None
    batch_size: int | None
    learning_rate_multiplier: float | None
    beta: float | None
    seed: int
    store: str

    @classmethod
    def of(cls, job: dict[str, Any], place: Place, store: str) -> Order:
        """Return the order of a job as the queue has it."""
        kind = job["method"]["type"]
        chosen = {key: value for key, value in job["method"]["hyperparameters"].items() if value != "auto"}
        return cls(
            id=job["id"],
            owner=job["owner"],
            adapter=job["adapter"],
            start_from=job["start_from"],
            release=job["release"],
            training=place.files / job["training_file"],
            validation=place.files / job["validation_file"] if job["validation_file"] else None,
            objective=kind,
            epochs=chosen.get("n_epochs"),
            batch_size=chosen.get("batch_size"),
            learning_rate_multiplier=chosen.get("learning_rate_multiplier"),
            beta=chosen.get("beta"),
            seed=job["seed"],
            store=store,
        )

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / FILE, self.model_dump_json(indent=1))

    @classmethod
    def read(cls, folder: Path) -> Order:
        return cls.model_validate_json((folder / FILE).read_bytes())
