"""Prompts that are chats: written once by the base's own chat template, and kept so with the task.

What a version was trained with stands in its manifest, so that neither a new date in a template nor another library
changes its prompt, and serving needs neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from adapters.errors import HotswapError
from adapters.tasks.base import SLOT, Chat, Template
from adapters.tokens import FileTokenizer
from adapters.validation import explained

# Stand-ins that no template's rules of trimming touch.
TEXT, ANSWER = "hotswapslotofthetext", "hotswapslotoftheanswer"
Turn = tuple[str, str]  # who speaks (system, user, assistant), and what is said
Said = list[dict[str, str]]


def asked(template: str | Chat, folder: Path, *, conversational: bool = False) -> str | Template:
    """Return what a task is made with: a text as it is, a chat as the base in ``folder`` writes it; of a
    ``conversational`` task as :func:`conversation` does."""
    if not isinstance(template, Chat):
        return template
    if not conversational:
        return rendered(template, folder)
    made = conversation([("system", template.system)] if template.system else [], folder, template.user)
    with explained(Template, f"the chat template of {folder.name} makes no prompt"):
        return Template.model_validate(made.model_dump())


def wording(template: str | Chat) -> str:
    """Return the words of a template, without the base's special tokens."""
    if isinstance(template, Chat):
        return "\n".join(filter(None, (template.system, template.user)))
    return template


def rendered(chat: Chat, folder: Path) -> Template:
    """Return ``chat`` as a template of version 2. Raises :class:`HotswapError` where the base cannot write it."""
    said = [{"role": "system", "content": chat.system}] if chat.system else []
    said += [{"role": "user", "content": chat.user.replace(SLOT, TEXT)}, {"role": "assistant", "content": ANSWER}]
    whole = _written(said, folder)
    before, _, rest = whole.partition(TEXT)
    after, _, behind = rest.partition(ANSWER)
    if whole.count(TEXT) != 1 or rest.count(ANSWER) != 1 or SLOT in whole:
        raise HotswapError(_unusable(folder))
    lead = " " if after.endswith(" ") else ""
    with explained(Template, f"the chat template of {folder.name} makes no prompt"):
        return Template.model_validate(
            {
                "version": 2,
                "text": f"{before}{SLOT}{after.removesuffix(' ')}",
                "lead": lead,
                "end": _first_control(behind, _reader(folder)),
            }
        )


def talks(folder: Path) -> bool:
    """Whether the base in ``folder`` has a chat template."""
    return bool(_tokenizer(folder).chat_template)


def conversation(before: Sequence[Turn], folder: Path, user: str = SLOT) -> Template:
    """Return the template in which a text is asked that follows what was said ``before``: the prompt is what an API of
    chats, given the same turns, puts before the base in ``folder``. Raises :class:`HotswapError`.

    Where a base writes more in front of an answer that is given than of one that is asked for (an empty thought), what
    it writes when asked counts.
    """
    said = [{"role": role, "content": text} for role, text in before]
    said.append({"role": "user", "content": user.replace(SLOT, TEXT)})
    prompt = _written(said, folder, add_generation_prompt=True)
    whole = _written([*said, {"role": "assistant", "content": ANSWER}], folder)
    if prompt.count(TEXT) != 1 or whole.count(ANSWER) != 1 or SLOT in prompt:
        raise HotswapError(_unusable(folder))
    head, _, behind = whole.partition(ANSWER)
    after = prompt.partition(TEXT)[2]
    lead = " " if after.endswith(" ") or (head.startswith(prompt) and head[len(prompt) :] == " ") else ""
    with explained(Template, f"the chat template of {folder.name} makes no prompt"):
        form = {"version": 2, "lead": lead, "end": _first_control(behind, _reader(folder))}
        made = Template.model_validate({**form, "text": f"{SLOT}{after.removesuffix(' ')}"})
    # What was said before is as long as it is: no limit of a template's holds for it.
    return made.model_copy(update={"text": prompt.replace(TEXT, SLOT).removesuffix(" ")})


def _unusable(folder: Path) -> str:
    return (
        f"the chat template of {folder.name} does not write the user's text and the answer to it once each; write "
        "the prompt as a text instead of a chat."
    )


@lru_cache(4)
def _tokenizer(folder: Path) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise HotswapError("prompts that are chats need transformers; run make setup.") from None
    return AutoTokenizer.from_pretrained(folder)


@lru_cache(4)
def _reader(folder: Path) -> FileTokenizer:
    return FileTokenizer(folder)


def _written(said: Said, folder: Path, **how: bool) -> str:
    tokenizer = _tokenizer(folder)
    if not tokenizer.chat_template:
        raise HotswapError(f"{folder.name} has no chat template; write the prompt as a text, or take another.")
    try:
        return str(tokenizer.apply_chat_template(said, tokenize=False, **how))
    except Exception as error:  # a template is a program of a stranger's
        reason = " ".join(str(error).split())[:200]
        raise HotswapError(
            f"the chat template of {folder.name} refuses this chat ({reason}); leave out what the system says, or "
            "write the prompt as a text."
        ) from error


def _first_control(text: str, tokenizer: FileTokenizer) -> int | None:
    """Return the special token that ``text`` begins with, if it does."""
    ids = tokenizer.encode_within(text, "", "")[0]
    return ids[0] if ids and ids[0] in tokenizer.controls else None
