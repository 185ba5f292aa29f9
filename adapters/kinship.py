"""Whether an adapter was trained on a base of the family at hand: shapes may fit all the same."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from adapters.architecture import Architecture
from adapters.errors import HotswapError, InvalidAdapter
from adapters.peft_config import Config, read_config


def check_family(folder: Path, base: Path) -> None:
    """Raise :class:`InvalidAdapter` for an adapter whose config says that its base is of another family."""
    trained, ours = _family_of(read_config(folder)), Architecture.of(base).family
    if trained and ours and _stem(trained) != _stem(ours):
        raise InvalidAdapter(
            f"{folder.name}: it was trained on a base of the family {trained}, and {base.name} is of {ours}: where the "
            "shapes fit it would answer nonsense; name the base that it was trained on (--base)"
        )


def _family_of(config: Config) -> str | None:
    """Return the family of the base that PEFT has noted: by its class, or by the folder it lay in."""
    mapping = config.get("auto_mapping")
    parts = str(mapping.get("parent_library")).split(".") if isinstance(mapping, dict) else []
    if parts[:2] == ["transformers", "models"] and len(parts) > 2:
        return parts[2]
    named = config.get("base_model_name_or_path")
    with suppress(HotswapError, OSError, ValueError):
        if isinstance(named, str) and (Path(named) / "config.json").is_file():
            return Architecture.of(Path(named)).family
    return None


def _stem(family: str) -> str:
    """The language model of a family has a name of its own beside a vision tower."""
    return family.replace("-", "_").removesuffix("_text")
