"""Train an adapter: load, construct, train, save."""

from __future__ import annotations

import math
import platform
import resource
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from adapters.errors import HotswapError
from adapters.progress import bar
from adapters.store import WEIGHTS
from trainer import methods, statistics
from trainer.batches import Encoded
from trainer.codec import Codec
from trainer.conversion import changes_of, to_lora
from trainer.evaluation import Scores
from trainer.fit import check_processes, fit, processes, whole
from trainer.job import Job
from trainer.lineage import made_with
from trainer.mixture import mixture
from trainer.occupancy import occupied
from trainer.prediction import predict, with_adapter
from trainer.progress import Clock, Diverged, is_lost, seconds_of
from trainer.recipe import CONVERTED
from trainer.reference import without_reference
from trainer.resumption import keep
from trainer.rows import Row
from trainer.run_record import Converted, HistoryEntry, RunRecord
from trainer.runs import digests


def train(
    job: Job,
    callbacks: Sequence[TrainerCallback] = (),
    start: Path | None = None,
    *,
    resumable: bool = True,
) -> RunRecord | None:
    """Train and leave the adapter in the recipe's ``run_folder / "adapter"``; return what the run was like (of several
    processes, which torchrun or accelerate have started, in the first; in others None).

    ``start`` is the folder of the LoRA to go on from, which the recipe's ``start_from`` names.

    ``resumable``: whether what it leaves where it is stopped will be gone on from.

    A run that was interrupted goes on from its last checkpoint, with the result it would have had; the run of
    another recipe, data or base in the same folder is given up once this one is done, and not before. Raises
    :class:`HotswapError` where the recipe does not fit the base model, or another training is at work there.
    """
    recipe = job.recipe
    for tracker in recipe.training.report_to:
        if find_spec(tracker) is None:
            raise HotswapError(f"training.report_to: {tracker} is not installed; pip install {tracker}.")
    check_processes(recipe)
    with ExitStack() as running:
        with processes().main_process_first():
            identity = recipe.run_identity(job.splits.fingerprint, job.base.digest)
            checkpoint = running.enter_context(occupied(recipe.run_folder, identity, processes().is_main_process))
        if processes().is_main_process:
            keep(recipe)
        running.enter_context(bar(None, "training", events=False))
        return _trained(job, callbacks, start, checkpoint, resumable=resumable)


def _trained(
    job: Job, callbacks: Sequence[TrainerCallback], start: Path | None, checkpoint: str | None, *, resumable: bool
) -> RunRecord | None:
    recipe, splits, base = job.recipe, job.splits, job.base
    learnt = Encoded(mixture(job), base)
    trainer, result = fit(job, learnt, [Clock(), *callbacks], start, checkpoint, resumable=resumable)
    seconds = seconds_of(trainer)
    model = without_reference(whole(trainer, recipe, base, start))
    if not processes().is_main_process:
        return None
    weights = [p for p in model.parameters() if p.requires_grad]
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    best = losses[-1] if recipe.method == "adalora" and losses else trainer.state.best_metric
    if best is None or not math.isfinite(best) or not all(w.half().isfinite().all() for w in weights):
        raise Diverged
    weights_count = sum(w.numel() for w in weights)
    shrunk = shrink(model, recipe.training.shrink, splits.validation, job.codec)
    folder = recipe.run_folder / "adapter"
    converted = _save(model, job, folder)
    if recipe.method in (*CONVERTED, "qlora"):  # what is served is not quite what was trained
        del model, trainer.model
        model = with_adapter(folder, base)
    calibration = 1.0 if recipe.objective == "reward" else _temperature(model, splits.validation, job.codec)
    count = torch.get_num_threads()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
    lost = [entry["step"] for entry in logged if is_lost(entry)]
    return RunRecord(
        data=splits.fingerprint,
        rows=splits.counts(),
        base=base.digest,
        machine=f"{count} thread{'s' * (count > 1)} of a {platform.machine()} CPU"
        if not torch.cuda.is_available()
        else torch.cuda.get_device_name(),
        seconds=round(seconds, 3),
        tokens_per_second=round(sum(learnt.lengths) * (trainer.state.epoch or 0.0) / seconds, 1),
        peak_memory_mib=_peak_memory_mib(),
        steps=trainer.state.global_step,
        train_loss=_mean_loss(trainer.state.log_history, result.training_loss),
        best_validation_loss=best,
        shrunk_to=shrunk,
        temperature=calibration,
        trainable_parameters=weights_count,
        **({"diverged_at": lost[0]} if lost else {}),
        **({"converted": converted} if converted else {}),  # absent, not null, in the file
        made_with=made_with(),
        files=digests(folder),
        history=tuple(map(_entry, logged)),
    )


def _entry(logged: dict[str, Any]) -> HistoryEntry:
    """Return what was logged at a step as JSON can say it: strict readers know no NaN."""
    said = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in logged.items()}
    return HistoryEntry.model_validate(said)


def _mean_loss(history: Sequence[dict[str, Any]], since_resumed: float) -> float:
    """Return the mean loss over all steps: transformers' own counts those before a resumption as nothing. Steps
    whose loss was no number are not among them."""
    logged = [(entry["step"], entry["loss"]) for entry in history if math.isfinite(entry.get("loss", math.nan))]
    steps = [after - before for before, after in pairwise([0, *(step for step, _ in logged)])]
    if not sum(steps):
        return since_resumed
    return float(sum(n * loss for n, (_, loss) in zip(steps, logged, strict=True)) / sum(steps))


def _peak_memory_mib() -> int:
    """Of the GPU where there is one, else of this process since its start."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated()) >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def shrink(model: Any, shares: Sequence[float], rows: list[Row], codec: Codec) -> float:
    """Scale the update to the smallest of ``shares`` whose accuracy on ``rows`` is within one standard error of
    the best, and return that share.

    Between the base and the fine-tuned weights lie models that are as good on the data trained on and better
    on other data (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903); the one-standard-error rule (Breiman et
    al. 1984) chooses among them without looking at that other data. For LoRA it is a smaller ``alpha``.
    """
    if not shares:
        return 1.0
    references = [row.answer for row in rows]
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    full = [layer.scaling["default"] for layer in layers]

    def scale(share: float) -> None:
        for layer, scaling in zip(layers, full, strict=True):
            layer.scaling["default"] = share * scaling

    model.eval()
    accuracy = {}
    for share in shares:
        scale(share)
        outputs = predict(model, rows, codec, f"share {share}")
        accuracy[share] = codec.task.score(outputs, references)["accuracy"]
    best = max(accuracy.values())
    chosen = min(s for s in shares if accuracy[s] >= best - math.sqrt(best * (1 - best) / len(rows)))
    scale(chosen)
    model.peft_config["default"].lora_alpha *= chosen
    return chosen


def _temperature(model: Any, rows: list[Row], codec: Codec) -> float:
    rows = [row for row in rows if row.good]
    if not codec.task.closed or len(rows) < statistics.CALIBRATION_ROWS:
        return 1.0
    model.eval()
    outputs = predict(model, rows, codec, "validation: confidence")
    return statistics.temperature(outputs, [row.answer for row in rows])


def _save(model: Any, job: Job, folder: Path) -> Converted | None:
    """Write the adapter in half precision: half the bytes to store and load.

    Evaluation reads this file back, so that what is measured is what will be served. Returns, for what had to be made
    into a LoRA, how that went, and the held-out scores from before.
    """
    recipe, base = job.recipe, job.base
    if recipe.method in CONVERTED:
        model.eval()
        rows = job.splits.test
        scores = job.task.score(predict(model, rows, job.codec, "test: as trained"), [row.answer for row in rows])
        changes = changes_of(model, methods.load_base(base, recipe))
        rank, error = to_lora(changes, recipe.convert, folder, base)
        return Converted(rank=rank, error=error, as_trained=Scores.model_validate(scores))
    model.peft_config["default"].base_model_name_or_path = base.name
    model.save_pretrained(folder, save_embedding_layers=False)  # or PEFT asks the network for base.name
    weights = folder / WEIGHTS
    save_file({k: v.half().contiguous() for k, v in load_file(weights).items()}, weights, metadata={"format": "pt"})
    (folder / "README.md").unlink(missing_ok=True)
    return None
