"""The docs as the tests see them: fenced blocks, and which of them are run (docs/contributing.md)."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
PAGES = sorted((REPO / "docs").glob("*.md"))
TUTORIAL = REPO / "docs/tutorial.md"
_FENCE = re.compile(
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"]*)")?\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL
)
_COMMAND = re.compile(r"^(?:make|minicollab|python|pip|ollama|lms|llama-\w+|\. |.*\| *minicollab) ?", re.M)


@dataclass(frozen=True)
class Block:
    language: str
    title: str
    text: str

    @property
    def has_commands(self) -> bool:
        return self.language == "bash" or (not self.language and bool(_COMMAND.search(self.text)))

    @property
    def is_run(self) -> bool:
        """By the fast tests."""
        return self.language == "bash" and not self.title

    @property
    def lines(self) -> list[str]:
        """Of a shell, those that go on with a backslash in one piece."""
        return self.text.replace("\\\n", " ").splitlines()


def blocks(page: Path) -> list[Block]:
    """In the order of the page."""
    found = _FENCE.finditer(page.read_text("utf-8"))
    return [Block(block["language"], block["title"] or "", block["text"]) for block in found]


def words(line: str) -> list[str]:
    """Of a command, without its comment."""
    return shlex.split(line, comments=True)


def files(page: Path) -> dict[str, str]:
    """Blocks of data that are titled with a file's name."""
    return {b.title: b.text for b in blocks(page) if b.title and b.language not in ("bash", "")}
