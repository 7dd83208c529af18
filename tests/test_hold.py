"""One process at a time works on a run folder; what is stopped or killed lets go of it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from minicollab.cli import main
from minicollab.errors import RunError
from minicollab.hold import held
from minicollab.run import STAGES

# Holds a folder until its standard input ends; says "in", or why not.
_HOLDER = """
import sys
from pathlib import Path
from minicollab.errors import RunError
from minicollab.hold import held
try:
    with held(Path(sys.argv[1]), "simulate"):
        print("in", flush=True)
        sys.stdin.read()
except RunError as error:
    print(error, flush=True)
"""


@contextmanager
def process(*command: Any, **how: Any) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([*map(str, command)], text=True, preexec_fn=_hear_interrupts, **how) as started:
        try:
            yield started
        finally:
            started.kill()


def _hear_interrupts() -> None:
    """As in a terminal, even if the tests run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def start_holder(folder: Path) -> Any:
    command = (sys.executable, "-c", _HOLDER, folder)
    return process(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def says(holder: subprocess.Popen[str]) -> str:
    assert holder.stdout
    return holder.stdout.readline().strip()


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    with start_holder(tmp_path) as first:
        assert says(first) == "in"
        with pytest.raises(RunError) as told, held(tmp_path, "train"):
            pass
        who = rf"process {first.pid} on {re.escape(socket.gethostname())} \(simulate, since \d\d:\d\d\)"
        assert re.fullmatch(rf"{re.escape(str(tmp_path))} is in use by {who}", told.value.what)
        assert f"kill {first.pid}" in told.value.remedy and told.value.code == 5
        first.communicate("")
    with held(tmp_path, "train"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}


def test_of_many_at_once_one_gets_in(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLDER, str(tmp_path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen(command, **pipes) for _ in range(6)]
    answers = [says(racer) for racer in racers]
    for racer in racers:
        racer.communicate("")
    assert answers.count("in") == 1 and sum("is in use by" in answer for answer in answers) == 5


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    with start_holder(tmp_path) as first:
        assert says(first) == "in"
        first.kill()
        first.wait()
    assert json.loads((tmp_path / ".holder.json").read_text())["pid"] == first.pid
    with held(tmp_path, "train"):
        assert json.loads((tmp_path / ".holder.json").read_text())["pid"] == os.getpid()


def test_what_the_holder_starts_is_let_through_and_nothing_further_down(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLDER, str(tmp_path)]
    with held(tmp_path, "run"):
        child = subprocess.run(command, input="", capture_output=True, text=True, check=True)
        assert child.stdout == "in\n"
        below = ["sh", "-c", '"$@"; exit $?', "sh", *command]
        grandchild = subprocess.run(below, input="", capture_output=True, text=True, check=True)
        assert f"process {os.getpid()} on" in grandchild.stdout
        assert (tmp_path / ".holder.json").exists()  # the child has not taken it along


@pytest.mark.parametrize("note", ["", "{", "[1]", '{"pid": 1}'])
def test_a_note_that_says_nothing(tmp_path: Path, note: str) -> None:
    with start_holder(tmp_path) as first:
        assert says(first) == "in"
        (tmp_path / ".holder.json").write_text(note)
        with pytest.raises(RunError, match="in use by another process"), held(tmp_path, "train"):
            pass


# Commands


class Silent:
    """A server of models that has no tokenizer, and else never answers: a stage goes on for good."""

    def __init__(self) -> None:
        asked, left = self.asked, self.left = threading.Event(), threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/tokenize":
                    self.send_error(404)
                    return
                asked.set()
                try:
                    self.rfile.read(1)  # until who asked has gone
                finally:
                    left.set()

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.name = f"http://127.0.0.1:{self.http.server_address[1]}/v1#tiny"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def silent() -> Iterator[Silent]:
    server = Silent()
    yield server
    server.http.shutdown()


@pytest.fixture
def recipe(tmp_path: Path, silent: Silent, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINICOLLAB_CACHE", str(tmp_path / "store"))
    row = {"opening": "help me", "details": ["it is for Ada"]}
    (tmp_path / "tasks.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    content = {
        "name": "small",
        "models": {"policy": silent.name},
        "tasks": {"path": "tasks.jsonl", "train": 1, "eval": 1},
        "judge": {"questions": {"asks": {"ask": "Does it ask?"}}},
        "remote": {"timeout": 600},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "recipe.yaml"


def minicollab(recipe: Path, *arguments: object, stderr: int = subprocess.PIPE) -> Any:
    """A command that works on the folder `out` beside the recipe, in a group of its own as a
    terminal's commands are."""
    command = [sys.executable, "-m", "minicollab", *arguments, recipe, "--out", recipe.parent / "out"]
    return process(*command, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True)


COMMANDS = [["simulate"], ["run", "--until", "simulate"]]


@pytest.mark.parametrize("command", COMMANDS, ids=["simulate", "run"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_in_one_line_and_the_folder_is_free(
    recipe: Path, silent: Silent, command: list[str], number: int, code: int
) -> None:
    with minicollab(recipe, *command) as running:
        assert silent.asked.wait(60)
        if number == signal.SIGINT:
            os.killpg(running.pid, number)  # as a terminal does
        else:
            running.send_signal(number)
        out, said = running.communicate(timeout=30)
    assert (running.returncode, out) == (code, "")
    lines = [line for line in said.splitlines() if not line.startswith("simulate: ")]
    assert lines == ["minicollab: stopped. The same command goes on where it was."]
    with held(recipe.parent / "out", "simulate"):
        pass
    assert silent.left.wait(30)


_IN_THE_BACKGROUND = """
import asyncio, os, signal
from minicollab.cli import _stoppable

async def step():
    os.kill(os.getpid(), signal.SIGTERM)

async def main():
    engine = asyncio.create_task(step())
    await asyncio.sleep(60)

signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does to what it starts with &
with _stoppable():
    asyncio.run(main())
"""


def test_terminated_in_the_background_in_the_middle_of_a_step() -> None:
    with process(sys.executable, "-c", _IN_THE_BACKGROUND, stderr=subprocess.PIPE) as done:
        _, said = done.communicate(timeout=30)
    assert said == "minicollab: stopped. The same command goes on where it was.\n"
    assert done.returncode == 143


@pytest.mark.slow
def test_the_terminal_is_left_as_it_was(recipe: Path, silent: Silent) -> None:
    ours, theirs = os.openpty()
    with minicollab(recipe, "run", "--until", "simulate", stderr=theirs) as running:
        assert silent.asked.wait(60)
        os.killpg(running.pid, signal.SIGINT)
        running.wait(30)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # how the end looks from this side
        while more := os.read(ours, 65536):
            shown += more
    os.close(ours)
    bars, _, said = shown.partition(b"minicollab: ")
    assert b"\x1b[?25l" in bars and bars.endswith(b"\x1b[?25h\r\n") and said.startswith(b"stopped.")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a stage outlives a killed run")
def test_a_stage_dies_with_the_run_that_started_it(recipe: Path, silent: Silent) -> None:
    with minicollab(recipe, "run", "--until", "simulate") as running:
        assert silent.asked.wait(60)
        running.kill()
        assert silent.left.wait(30)
    with held(recipe.parent / "out", "simulate"):
        pass


@pytest.mark.slow
def test_a_stage_that_is_killed_is_named(recipe: Path, silent: Silent) -> None:
    with minicollab(recipe, "run", "--until", "simulate") as running:
        assert silent.asked.wait(60)
        (stage,) = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        os.kill(int(stage), signal.SIGKILL)
        _, said = running.communicate(timeout=30)
    assert running.returncode == 1
    assert said.splitlines()[-1] == (
        "minicollab: the simulate stage was killed by signal 9. Run the same command again."
    )


@pytest.mark.slow
def test_a_second_command_on_the_folder_changes_nothing(recipe: Path, silent: Silent) -> None:
    kept = recipe.parent / "out/recipe.yaml"
    with minicollab(recipe, "run", "--until", "simulate") as running:
        assert silent.asked.wait(60)
        before = kept.read_bytes()
        for command in ("run", *STAGES):
            arguments = [command, str(recipe), "--out", str(kept.parent), "--set", "seed=7"]
            result = CliRunner().invoke(main, arguments)
            assert result.exit_code == 5 and result.stdout == ""
            (line,) = result.stderr.splitlines()
            assert f"is in use by process {running.pid} on" in line and "(run, since" in line
        assert kept.read_bytes() == before
    assert running.returncode == -signal.SIGKILL
