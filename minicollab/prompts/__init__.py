"""Prompts, one text file each, filled in a single pass.

A value is never looked at again after it was put in, so text from people cannot smuggle in
another placeholder, and braces in it mean nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files

from minicollab.schema import Message

TEMPLATE = {"enable_thinking": False}
"""What chat templates are told besides the messages: Qwen3's then lets the model answer at once, and
the others do not know the word. The same in simulation, training and checks."""


def as_trained(template: str) -> str:
    """The chat template, for apps that tell it nothing: it is told the same."""
    known = {word: str(value).lower() for word, value in TEMPLATE.items() if word in template}
    return "".join(f"{{%- set {word} = {value} %}}" for word, value in known.items()) + template


_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


@cache
def load(name: str) -> str:
    return files(__name__).joinpath(f"{name}.txt").read_text("utf-8").rstrip("\n")


def fill(name: str, **values: str) -> str:
    """The prompt `name` with every `{{placeholder}}` replaced. KeyError if one has no value."""
    return _fill(load(name), values)


def chat(name: str, **values: str) -> list[Message]:
    """The prompt `name` as chat messages: its parts, split at lines of `---`, are said by user
    and assistant in turns."""
    parts = load(name).split("\n---\n")
    return [Message("assistant" if i % 2 else "user", _fill(part, values)) for i, part in enumerate(parts)]


def _fill(text: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: values[match[1]], text)


def one_line(text: str) -> str:
    """In transcripts a message is one line, so that it cannot imitate the next speaker's."""
    return " ".join(text.split())


def transcript(messages: Iterable[Message], user: str, assistant: str) -> str:
    """One line per message, each begun by who speaks."""
    names = {"user": user, "assistant": assistant}
    return "\n".join(f"{names[m.role]}: {one_line(m.content)}" for m in messages if m.role in names)


def everything() -> dict[str, str]:
    """Every prompt by name: part of what a stage's result depends on."""
    texts = (f for f in files(__name__).iterdir() if f.name.endswith(".txt"))
    return {f.name: f.read_text("utf-8") for f in texts}
