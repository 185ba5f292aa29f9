"""Everything that can make the engine refuse or misuse an adapter, checked before it is published or loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from adapters.errors import InvalidAdapter
from adapters.peft_config import PROMPT_TYPES, Config, config_problems, read_config
from adapters.plain import Module, Plan, plan
from adapters.store import CONFIG, WEIGHTS
from adapters.tensors import FLOATS, BadTensors, Tensor, as_float32, read_bits, read_header

CARD, REPORT, TASK_FILE = "README.md", "report.html", "task.json"
# What is read of a folder. Whatever else a trainer has left there is nobody's concern.
READ = (CONFIG, WEIGHTS, CARD, REPORT, TASK_FILE)
MAX_BYTES = 2 << 30
SHOWN_PROBLEMS, SHOWN_CHARS = 8, 300
MAX_VIRTUAL_TOKENS = 256
PROMPT = "prompt_embeddings"  # PEFT's name for the one tensor of a learnt prompt: (tokens, hidden size)
# The largest number of float16, the narrowest type that a base is served in. What an adapter adds to a module's output
# for an input of unit variance is at most scaling x |row of B| x |A| x sqrt(width); past this it is no adaptation of
# anything, and products of it with itself (attention, gates, squares in a norm) leave float32 as well.
MAX_EFFECT = 65504.0
SIZE = re.compile(r"(?:^|[^a-z0-9])\d+(?:\.\d+)?[bmk](?:$|[^a-z0-9])")
QUANTIZED = re.compile(r"(?:-(?:unsloth|bnb|gguf|awq|gptq|bf16|[48]bit))+$")
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Facts:
    """What a sound adapter folder holds. ``scaling`` is what ``B @ A`` is multiplied by.

    A learnt prompt has ``virtual_tokens``, rank 0, and nothing else.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    scaling: float
    virtual_tokens: int = 0


@dataclass(frozen=True)
class Examined:
    """A sound folder: its facts, its weights' header, and, of a LoRA, what would make it plain."""

    facts: Facts
    header: Mapping[str, Tensor]
    plan: Plan | None = None


def lint(folder: Path, *, shapes: Shapes | None = None, max_rank: int | None = None, stored: bool = False) -> Facts:
    """Return what the folder holds, or raise :class:`InvalidAdapter` naming everything that is wrong with it.

    ``shapes`` maps the base's modules to their weights' (out, in); ``max_rank`` is the server's limit. What is
    ``stored`` goes to the engine as it is, and must be plain.
    """
    examined = examine(folder, shapes=shapes, max_rank=max_rank)
    if stored and examined.plan is not None and not examined.plan.is_plain:
        raise InvalidAdapter(f"{folder.name}: it is not the plain LoRA that python -m adapters add makes; add it anew")
    return examined.facts


def examine(folder: Path, *, shapes: Shapes | None = None, max_rank: int | None = None) -> Examined:
    """Do as :func:`lint` does, and return with the facts what :mod:`adapters.intake` needs besides."""
    try:
        _refuse_links_out(folder)
        _refuse_other_folders(folder)
        config = read_config(folder)
        if config.get("peft_type") in PROMPT_TYPES:
            return _examine_prompt(folder, config, shapes)
        return _examine_lora(folder, config, shapes, max_rank)
    except InvalidAdapter as error:
        raise InvalidAdapter(f"{folder.name or folder.resolve().name}: {error}") from error


def is_prompt(folder: Path) -> bool:
    """Return whether a folder holds a learnt prompt; one that holds nothing sound does not."""
    try:
        return read_config(folder).get("peft_type") in PROMPT_TYPES
    except InvalidAdapter:
        return False


def adapts_embeddings(folder: Path) -> bool:
    """Return whether a folder's LoRA changes how tokens are looked up; one that holds nothing sound does not."""
    try:
        return any(".lora_embedding_" in key for key in read_header(folder / WEIGHTS))
    except (BadTensors, OSError):
        return False


def doubts(folder: Path, base: str | None) -> list[str]:
    """Return what is worth a word to who takes in a sound folder for ``base``, and no reason to refuse it."""
    config = read_config(folder)
    warnings = []
    trained_on = config.get("base_model_name_or_path")
    if base and isinstance(trained_on, str) and is_another_model(trained_on, base):
        warnings.append(
            f"it was trained on {trained_on}, and is taken for {base}: on another model it answers nonsense"
        )
    if config.get("init_lora_weights") == "lora_ga":
        warnings.append("LoRA-GA trains on a changed base: its answers are right if it was converted when it was saved")
    return warnings


def is_another_model(trained_on: str, base: str) -> bool:
    """Whether two names are surely of different models. A folder may be called anything: it counts by a size in it."""
    theirs, ours = (re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower() for name in (trained_on, base))
    is_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", trained_on) is not None
    if not (is_id or SIZE.search(theirs)) or not ("/" in base or SIZE.search(ours)):
        return False
    theirs, ours = (re.sub(r"[^a-z0-9.]+", "-", QUANTIZED.sub("", name)) for name in (theirs, ours))
    return theirs != ours and (is_id or not theirs.startswith(ours))


def _examine_lora(folder: Path, config: Config, shapes: Shapes | None, max_rank: int | None) -> Examined:
    _raise([*config_problems(config), *_file_problems(folder)])
    header = _header(folder)
    lora_plan = plan(config, header)
    problems = [*lora_plan.problems, *_type_problems(header, lora_plan)]
    if max_rank is not None and lora_plan.rank > max_rank:
        problems.append(
            f"rank {lora_plan.rank} is above the server's limit of {max_rank}; "
            "raise HOTSWAP_MAX_LORA_RANK or train smaller"
        )
    problems += [problem for module in lora_plan.modules for problem in _module_problems(module, header, shapes)]
    problems += _frozen_problems(header, lora_plan, shapes)
    problems += [] if problems else _number_problems(folder / WEIGHTS, header, lora_plan)
    _raise(problems)
    names = tuple(sorted({module.name.rsplit(".", 1)[-1] for module in lora_plan.modules}))
    return Examined(
        Facts(lora_plan.rank, float(lora_plan.config["lora_alpha"]), names, lora_plan.scaling), header, lora_plan
    )


def _examine_prompt(folder: Path, config: Config, shapes: Shapes | None) -> Examined:
    """Check vectors in front of the prompt, as PEFT saves them after prompt tuning and P-tuning."""
    _raise([*_file_problems(folder)])
    header = _header(folder)
    _raise([*_prompt_problems(header, config, shapes)])
    tensor = header[PROMPT]
    vectors = as_float32(read_bits(folder / WEIGHTS, tensor), tensor.dtype)
    if not np.isfinite(vectors).all():
        _raise([f"tensor {PROMPT} holds NaN or infinity; train again with a lower learning rate"])
    if np.abs(vectors).max() > MAX_EFFECT:
        _raise([f"tensor {PROMPT} holds numbers beyond {MAX_EFFECT:g}; train again with a lower learning rate"])
    if not vectors.any():
        _raise([f"every {PROMPT} is zero, so that it changes nothing: it was never trained"])
    return Examined(Facts(0, 0.0, (), 0.0, tensor.shape[0]), header)


def _prompt_problems(header: Mapping[str, Tensor], config: Config, shapes: Shapes | None) -> Iterator[str]:
    if list(header) != [PROMPT]:
        yield f"a learnt prompt is one tensor, {PROMPT}, and nothing else; save it with PEFT's save_pretrained"
        return
    shape, dtype = header[PROMPT].shape, header[PROMPT].dtype
    if dtype not in FLOATS:
        yield f"{PROMPT} is {dtype}; F32, F16 or BF16 can be served"
    if len(shape) != 2 or not 1 <= shape[0] <= MAX_VIRTUAL_TOKENS:
        yield f"{PROMPT} has the shape {shape}; served are 1 to {MAX_VIRTUAL_TOKENS} vectors"
    elif config.get("num_virtual_tokens") != shape[0]:
        yield f"num_virtual_tokens is {config.get('num_virtual_tokens')!r} and there are {shape[0]} vectors"
    hidden = {shape[1] for name, shape in (shapes or {}).items() if name.endswith("embed_tokens")}
    if len(shape) == 2 and hidden and shape[1] not in hidden:
        yield f"the vectors have {shape[1]} numbers, those of the base {hidden.pop()}: it was made for another base"


def _raise(problems: list[str]) -> None:
    """Refuse in one line, of sane length, whatever names and values the adapter's author has thought of."""
    if not problems:
        return
    more = len(problems) - SHOWN_PROBLEMS
    shown = [_shortened(problem) for problem in problems[:SHOWN_PROBLEMS]] + ([f"and {more} more"] if more > 0 else [])
    raise InvalidAdapter("; ".join(shown))


def _shortened(text: str) -> str:
    """Keep the beginning, which says what, and the end, which says what is wrong with it."""
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS // 2]} … {text[-SHOWN_CHARS // 2 :]}"


def _refuse_links_out(folder: Path) -> None:
    """What somebody else packed must not name a file of ours, to be read and published.

    A snapshot in a Hugging Face cache is links into its own model's blobs: those are its files.
    """
    within = folder.resolve()
    snapshots = [place.parent for place in (within, *within.parents) if place.parent.name == "snapshots"]
    allowed = [within, *(place.parent / "blobs" for place in snapshots if place.parent.name.startswith("models--"))]
    present = [folder / name for name in READ if (folder / name).is_file()]
    out = [path.name for path in present if not any(path.resolve().is_relative_to(place) for place in allowed)]
    if out:
        raise InvalidAdapter(f"{', '.join(sorted(out))} leads out of the folder; copy it with cp -rL")


def _refuse_other_folders(folder: Path) -> None:
    """Say of folders that are no adapter, and often taken for one, which is meant or what to do."""
    if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
        return
    if (folder / "adapters.safetensors").is_file():
        raise InvalidAdapter("it is an MLX adapter, whose format is another: train it with PEFT, or convert it to PEFT")
    inside = [path.name for path in islice(folder.iterdir(), 1000) if _holds_adapter(path)]
    if inside:
        named = ", ".join(sorted(inside, key=lambda name: (len(name), name))[-5:])
        missing = WEIGHTS if (folder / CONFIG).is_file() else CONFIG
        raise InvalidAdapter(f"{missing} is missing; it holds {named}: name that folder instead")
    if not (folder / CONFIG).is_file() and (folder / "config.json").is_file():
        raise InvalidAdapter(f"it is not a PEFT adapter: {CONFIG} is missing; it looks like a whole model")


def _holds_adapter(path: Path) -> bool:
    return not path.is_symlink() and path.is_dir() and (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def _file_problems(folder: Path) -> Iterator[str]:
    weights = folder / WEIGHTS
    if weights.is_file():
        if weights.stat().st_size > MAX_BYTES:
            yield f"{WEIGHTS} has {weights.stat().st_size} bytes; the limit is {MAX_BYTES}"
        return
    pickles = [name for name in ("adapter_model.bin", "adapter_model.pt") if (folder / name).is_file()]
    if pickles:
        yield f"{pickles[0]}: pickles can run code and are refused; load it with PEFT and save_pretrained it again"
    elif any(folder.glob("adapter_model-*-of-*.safetensors")):
        yield f"its weights are in several files; the engine reads {WEIGHTS} alone: save it again in one"
    else:
        yield f"{WEIGHTS} is missing; save with PEFT's save_pretrained(safe_serialization=True)"


def _header(folder: Path) -> dict[str, Tensor]:
    try:
        return read_header(folder / WEIGHTS)
    except BadTensors as error:
        raise InvalidAdapter(_shortened(f"{WEIGHTS} is damaged: {error}")) from None


def _type_problems(header: Mapping[str, Tensor], lora_plan: Plan) -> Iterator[str]:
    for key, tensor in header.items():
        if tensor.dtype not in FLOATS and key not in lora_plan.frozen:
            yield f"tensor {key} is {tensor.dtype}; F32, F16 or BF16 can be served"


def _module_problems(module: Module, header: Mapping[str, Tensor], shapes: Shapes | None) -> Iterator[str]:
    if not (module.a and module.b):
        yield f"{module.name} has only one of lora_A and lora_B"
        return
    a, b = header[module.a].shape, header[module.b].shape
    if len(a) != 2 or len(b) != 2 or a[0] != module.rank or b[1] != module.rank:
        yield f"{module.name}: lora_A {a} and lora_B {b} do not have rank {module.rank}"
    elif module.embedding != (module.name.rsplit(".", 1)[-1] == "embed_tokens"):
        yield f"{module.name}: lora_embedding_A and lora_embedding_B are for embed_tokens, and nothing else"
    elif shapes is not None:
        base = _base_shape(module.name, shapes)
        own = (a[1], b[0]) if module.embedding else (b[0], a[1])
        if base is None:
            yield f"{module.name} is not a module of the base model"
        elif own != base:
            yield f"{module.name}: the adapter is for {own}, the base has {base}"


def _base_shape(module: str, shapes: Shapes) -> tuple[int, ...] | None:
    """Return a module's (out, in). Where the base's head is its embedding, the checkpoint has only the one."""
    return shapes.get(module) or (shapes.get("model.embed_tokens") if module == "lm_head" else None)


def _frozen_problems(header: Mapping[str, Tensor], lora_plan: Plan, shapes: Shapes | None) -> Iterator[str]:
    for key in lora_plan.frozen:
        module = key.removesuffix(".base_layer.weight").removeprefix("base_model.model.")
        if shapes is not None and header[key].shape != _base_shape(module, shapes):
            yield f"{key} is {header[key].shape}: it was trained on a base with another vocabulary"
    adapted = {module.name.rsplit(".", 1)[-1] for module in lora_plan.modules} & {"embed_tokens", "lm_head"}
    if lora_plan.config.get("ensure_weight_tying") and adapted:
        yield "ensure_weight_tying=True cannot be served with embed_tokens or lm_head adapted; train without it"


def _number_problems(path: Path, header: Mapping[str, Tensor], lora_plan: Plan) -> Iterator[str]:
    trained = False
    for module in lora_plan.modules:
        a, b = (as_float32(read_bits(path, header[key]), header[key].dtype) for key in (module.a, module.b))
        trained |= bool(b.any())
        spoilt = [key for key, numbers in ((module.a, a), (module.b, b)) if not np.isfinite(numbers).all()]
        yield from (f"tensor {key} holds NaN or infinity; train again with a lower learning rate" for key in spoilt)
        effect = lora_plan.scaling * module.factor * _effect(a, b, embedding=module.embedding)
        if not spoilt and not effect <= MAX_EFFECT:
            yield (
                f"{module.name}: its numbers are so large (an effect of up to {effect:.2g}, at most {MAX_EFFECT:g}) "
                "that answers would overflow; train again with a lower learning rate"
            )
    if not trained:
        yield "every lora_B is zero, so that it changes nothing: it was never trained"


def _effect(a: np.ndarray, b: np.ndarray, *, embedding: bool) -> float:
    """Return how much B @ A can add to a number, for an input of unit variance or, to an embedding, one token."""
    row = np.sqrt(np.square(b, dtype=np.float64).sum(axis=1).max(initial=0))
    squares = np.square(a, dtype=np.float64)
    into = np.sqrt(squares.sum(axis=0).max(initial=0)) if embedding else np.sqrt(squares.sum() * a.shape[1])
    return float(row * into)
