"""Prompts that are chats: written once by the base's own chat template, and kept so with the task.

What a version was trained with stands in its manifest, so that neither a new date in a template nor another library
changes its prompt, and serving needs neither.
"""

from __future__ import annotations

from pathlib import Path

from adapters.errors import HotswapError
from adapters.tasks.base import SLOT, Chat, Template
from adapters.tokens import FileTokenizer
from adapters.validation import explained

# Stand-ins that no template's rules of trimming touch.
TEXT, ANSWER = "hotswapslotofthetext", "hotswapslotoftheanswer"


def asked(template: str | Chat, folder: Path) -> str | Template:
    """Return what a task is made with: a text as it is, a chat as the base in ``folder`` writes it."""
    return rendered(template, folder) if isinstance(template, Chat) else template


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
        raise HotswapError(
            f"the chat template of {folder.name} does not write the user's text and the answer to it once each; write "
            "the prompt as a text instead of a chat."
        )
    lead = " " if after.endswith(" ") else ""
    with explained(Template, f"the chat template of {folder.name} makes no prompt"):
        return Template.model_validate(
            {
                "version": 2,
                "text": f"{before}{SLOT}{after.removesuffix(' ')}",
                "lead": lead,
                "end": _first_control(behind, FileTokenizer(folder)),
            }
        )


def _written(said: list[dict[str, str]], folder: Path) -> str:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise HotswapError("prompts that are chats need transformers; run make setup.") from None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        raise HotswapError(f"{folder.name} has no chat template; write the prompt as a text, or take another.")
    try:
        return str(tokenizer.apply_chat_template(said, tokenize=False))
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
