"""The chat in a real terminal (tmux), and the server asked by OpenAI's own client."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from minicollab.models import SMOLLM2
from tests.test_chat import adapter  # noqa: F401  (a fixture)
from tests.tiny_gguf import tiny

REPO = Path(__file__).resolve().parents[1]
_numbers = count()
LONGEST = 300  # seconds that a busy machine may take

pytestmark = pytest.mark.slow
needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


class Terminal:
    """A tmux window, as wide as asked for, in which a command runs."""

    def __init__(self, socket: str, command: list[str], width: int, env: dict[str, str]):
        self._tmux = ["tmux", "-u", "-f", "/dev/null", "-L", socket]
        given = [f"{name}={value}" for name, value in env.items()]
        typed = shlex.join(["env", "--default-signal=INT", *given, *command])  # deaf to it in the background
        inside = f"{typed}; echo LEFT=$?; exec sleep {LONGEST}"
        self._do("new-session", "-d", "-s", "chat", "-x", str(width), "-y", "200", inside)

    def _do(self, *arguments: str, text: str | None = None) -> str:
        done = subprocess.run(
            [*self._tmux, *arguments],
            input=text,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env=dict(os.environ),  # without the COLUMNS that pytest's readline has put into the real one
        )
        return done.stdout

    def keys(self, *keys: str) -> None:
        self._do("send-keys", "-t", "chat", *keys)

    def say(self, text: str) -> None:
        """Type a line."""
        self._do("send-keys", "-t", "chat", "-l", text)
        self.keys("Enter")

    def paste(self, text: str) -> None:
        self._do("load-buffer", "-", text=text)
        self._do("paste-buffer", "-p", "-t", "chat")

    @property
    def screen(self) -> str:
        return self._do("capture-pane", "-p", "-t", "chat").rstrip()

    def until(self, true: Callable[[str], Any], what: str) -> str:
        end = time.monotonic() + LONGEST
        while not true(screen := self.screen):
            assert time.monotonic() < end, f"no {what} on the screen:\n{screen}"
            time.sleep(0.1)
        return screen

    def ready(self, times: int) -> str:
        """The screen once there have been so many prompts, the last of them empty."""
        return self.until(
            lambda s: len(re.findall(r"^>( |$)", s, re.M)) >= times and s.endswith("\n>"), f"prompt {times}"
        )

    def close(self) -> None:
        self._do("kill-server")


@contextmanager
def chatting(tmp_path: Path, *arguments: object, width: int = 100) -> Iterator[Terminal]:
    command = [sys.executable, "-m", "minicollab", "chat", *map(str, arguments)]
    env = {"PYTHONPATH": str(REPO), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    terminal = Terminal(f"minicollab-{os.getpid()}-{next(_numbers)}", command, width, env)
    try:
        yield terminal
    finally:
        terminal.close()


@needs_tmux
@pytest.mark.parametrize(("width", "beside"), [(100, True), (60, False)])
def test_a_comparison_fits_the_terminal(
    width: int,
    beside: bool,
    tmp_path: Path,
    adapter: Path,  # noqa: F811
) -> None:
    with chatting(tmp_path, tiny("chatml"), "--adapter", adapter, "--max-tokens", 30, width=width) as chat:
        chat.ready(1)
        chat.say("/adapter 0.5")
        assert "counts 0.5" in chat.ready(2)
        chat.say("/compare the rain")
        screen = chat.ready(3)
        heads = [line for line in screen.splitlines() if "╭" in line]
        assert len(heads) == (1 if beside else 2)
        assert re.search(r"\bbase\b", heads[0]) and re.search(r"\btrained\b", heads[-1])
        assert max(map(cell_len, screen.splitlines())) <= width  # marks on letters take no room


@needs_tmux
def test_a_message_of_many_lines_is_one_and_can_be_had_again(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    options = (tiny("chatml"), "--max-tokens", 8)
    with chatting(tmp_path, *options) as chat:
        chat.ready(1)
        chat.paste("the rain\n  is on\nyou")
        chat.keys("Enter")
        chat.ready(2)
        chat.keys("a", "M-Enter", "b", "Enter")
        chat.ready(3)
        chat.keys("never", "C-c")
        chat.ready(4)
        chat.say(f"/save {file}")
        chat.until(lambda screen: "messages in" in screen, "saved talk")
        chat.keys("C-d")
        chat.until(lambda screen: "LEFT=0" in screen, "end")
    asked = [row["content"] for row in json.loads(file.read_text("utf-8")) if row["role"] == "user"]
    assert asked == ["the rain\n  is on\nyou", "a\nb"]
    with chatting(tmp_path, *options) as chat:
        chat.ready(1)
        chat.keys("Up")
        chat.until(lambda screen: f"> /save {file}" in screen, "line of the chat before")


@needs_tmux
def test_smollm2_in_a_terminal(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    options = ("--temperature", 0, "--max-tokens", 1500, "--context", 4096, "--seed", 1)
    with chatting(tmp_path, SMOLLM2, *options) as chat:
        assert "/help" in chat.ready(1)
        chat.say("What is the capital of France? Answer in one sentence.")
        assert "Paris" in chat.ready(2).split("> What")[1]
        chat.say("Write a very long story about a dog, chapter by chapter.")
        before = len(chat.until(lambda screen: "> Write" in screen, "question"))
        chat.until(lambda screen: len(screen) > before + 100, "beginning of a story")
        chat.keys("C-c")
        chat.until(lambda screen: "(stopped)" in screen, "stopped reply")
        chat.ready(3)
        chat.say("/adapter 0.5")
        assert "needs an adapter" in chat.ready(4)
        chat.say(f"/save {file}")
        chat.until(lambda screen: "4 messages in" in screen, "saved talk")
        chat.keys("C-d")
        chat.until(lambda screen: "LEFT=0" in screen, "end")
    story = json.loads(file.read_text("utf-8"))[-1]
    assert story["role"] == "assistant" and len(story["content"]) > 50


@pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="openai is not installed: make test")
@pytest.mark.skipif(
    importlib.util.find_spec("fastapi") is None, reason="fastapi is not installed: make setup"
)
def test_openais_client_is_answered_by_smollm2() -> None:
    import httpx2
    import openai

    command = [sys.executable, "-m", "minicollab", "serve", SMOLLM2, "--port", "0"]
    env = os.environ | {"PYTHONPATH": str(REPO), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as child:
        try:
            assert child.stdout
            found = re.search(r"http://\S+/v1", child.stdout.readline())
            assert found, child.communicate()[1]
            client = openai.OpenAI(
                base_url=found[0],
                api_key="any",
                timeout=LONGEST,
                http_client=httpx2.Client(trust_env=False),
            )
            name = client.models.list().data[0].id
            how: dict[str, Any] = {
                "model": name,
                "messages": [{"role": "user", "content": "What is the capital of France?"}],
                "temperature": 0,
                "max_tokens": 200,
            }
            whole = client.chat.completions.create(**how)
            # On most processors it says Paris, not on all.
            assert "France" in (whole.choices[0].message.content or "")
            assert whole.choices[0].finish_reason == "stop"  # by itself, at the end of its turn
            parts = [
                chunk.choices[0].delta.content or ""
                for chunk in client.chat.completions.create(**how, stream=True)
                if chunk.choices
            ]
            assert "France" in "".join(parts) and len(parts) > 5
            assert "<|im_" not in "".join(parts)
            client.close()
            child.send_signal(signal.SIGINT)
            assert "Traceback" not in child.communicate(timeout=LONGEST)[1]
            assert child.returncode == 0
        finally:
            child.kill()
