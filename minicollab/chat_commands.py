"""What can be typed in a chat instead of a message."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicollab.chat import Chat
from minicollab.errors import MinicollabError
from minicollab.files import aside
from minicollab.schema import Conversation, Message

_STRONGEST = 100  # a strength's numbers overflow far beyond it
_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?\s*", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """`do` takes the chat and what was typed after the name, and returns what to tell; None where
    the terminal has to do it. MinicollabError if it cannot be done."""

    argument: str
    help: str
    do: Callable[[Chat, str], str] | None = None


def parse(line: str) -> tuple[str, str] | None:
    """A command's name and what comes after it; None if the line is a message, as a path or a
    comment is. MinicollabError if there is no such command."""
    match = _COMMAND.fullmatch(line)
    if match is None:
        return None
    name, rest = match[1], (match[2] or "").strip()
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"Did you mean /{near[0]}?" if near else "Type /help for those that there are."
        raise MinicollabError(f"there is no command /{name}", hint)
    if rest and not COMMANDS[name].argument:
        raise MinicollabError(f"/{name} takes nothing after it", "If it is a message, begin it with a blank.")
    return name, rest


def _system(chat: Chat, text: str) -> str:
    chat.tell(text)
    return "The model is told so from now on." if text else "The model is told nothing any more."


def _adapter(chat: Chat, text: str) -> str:
    strength = chat.needs_adapter()
    if text:
        try:
            strength = float(text)
        except ValueError:
            strength = math.nan
        if not 0 <= strength <= _STRONGEST:
            raise MinicollabError(f"{text} is no strength", "Type a number: 0 is the base, 1 as trained.")
        chat.turn(strength)
    return f"The adapter counts {strength:g} (0: the base, 1: as trained)."


def _new(chat: Chat, text: str) -> str:
    chat.talk = Conversation()
    return "A new conversation."


def _save(chat: Chat, text: str) -> str:
    path = _path(text, "/save FILE")
    with _explained(path):
        if path.exists():
            _read(path)  # never over anything but a conversation
    system = [Message("system", chat.system).as_dict()] if chat.system else []
    rows = [*system, *chat.talk.as_dicts()]
    with _explained(path), aside(path) as partial:
        partial.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return f"{len(rows)} messages in {path}"


def _load(chat: Chat, text: str) -> str:
    path = _path(text, "/load FILE")
    messages = _read(path)
    system = [m.content for m in messages if m.role == "system"]
    chat.tell("\n\n".join(system))
    chat.talk = Conversation(tuple(m for m in messages if m.role != "system"))
    return f"{len(messages)} messages from {path}"


def _help(chat: Chat, text: str) -> str:
    rows = [(f"/{name} {command.argument}", command.help) for name, command in COMMANDS.items()]
    rows += [("Ctrl-C", "stops the reply"), ("Ctrl-D", "leaves"), ("Alt-Enter", "a new line in a message")]
    return "\n".join(f"{what:<20} {meaning}" for what, meaning in rows)


COMMANDS = {
    "system": Command("[TEXT]", "what the model is told first; without TEXT nothing any more", _system),
    "regenerate": Command("", "another answer to the last question"),
    "adapter": Command("[NUMBER]", "how much the adapter counts: 0 the base, 1 as trained", _adapter),
    "compare": Command("[QUESTION]", "base and trained side by side; without QUESTION on the last one"),
    "new": Command("", "forget the conversation", _new),
    "save": Command("FILE", "write the conversation as JSON", _save),
    "load": Command("FILE", "go on with a conversation that was saved", _load),
    "help": Command("", "this list", _help),
    "quit": Command("", "leave"),
}


def _path(text: str, usage: str) -> Path:
    if not text:
        raise MinicollabError("there is no file named", f"Type {usage}.")
    with _explained(Path(text)):
        return Path(text).expanduser()


def _read(path: Path) -> list[Message]:
    with _explained(path):
        if path.exists() and not path.is_file():  # some devices can be read for ever
            raise ValueError("no file")
        rows = path.read_bytes()
    try:
        saved = json.loads(rows)
        if not isinstance(saved, list):
            raise TypeError
        return [_message(row) for row in saved]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise MinicollabError(f"{path} holds no saved conversation", "Name another file.") from None


def _message(row: Any) -> Message:
    role, content = row["role"], row["content"]
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise ValueError
    return Message(role, content)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """In one line what there is against a file."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # no such path, and no such home
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise MinicollabError(f"{path}: {why}", "Name another file.") from None
