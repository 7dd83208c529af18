"""The command line: the stages, `run` and `bench`, and what an error becomes."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from minicollab import __version__
from minicollab.cli_ablate import ablate
from minicollab.cli_ambiguity import ambiguity
from minicollab.cli_cache import cache
from minicollab.cli_chat import chat
from minicollab.cli_common import (
    Number,
    display,
    events_option,
    json_option,
    out_option,
    recipe_argument,
    run_or_recipe_argument,
    set_option,
)
from minicollab.cli_doctor import doctor
from minicollab.cli_export import export_command
from minicollab.cli_fetch import fetch
from minicollab.cli_judge_check import judge_check
from minicollab.cli_serve import serve
from minicollab.cli_simulator_check import simulator_check
from minicollab.cli_tasks import init, tasks
from minicollab.errors import MinicollabError, RecipeError
from minicollab.run import STAGES, Run
from minicollab.summaries import benched, summary
from minicollab.terminal import printable

_HELP = {
    "simulate": "Play the training conversations, score candidates by MR, write preference pairs.",
    "train": "QLoRA DPO on the preference pairs.",
    "export": "Write the trained model as GGUF, and check it against torch.",
    "eval": "Compare base, proactive base and trained on the held-out tasks.",
    "report": "Write report.html.",
}
_INTERRUPTED = 130
_PR_SET_PDEATHSIG = 1  # of prctl(2)


class _Commands(click.Group):
    """Turns what a person can mend into one line and an exit code; everything else is a bug."""

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # not every locale has an arrow
        try:
            with _stoppable():
                return super().invoke(ctx)
        except MinicollabError as error:
            _fail(str(error), error.code)
        except sqlite3.Error as error:
            _fail(
                f"the cache cannot be used: {error}. Free some space, or set MINICOLLAB_CACHE elsewhere.", 5
            )
        except BrokenPipeError:
            raise  # whoever read has heard enough: click ends in silence
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            _fail(f"{error.strerror or error}{where}. Check free space and permissions, then run again.", 5)


def _fail(line: str, code: int) -> None:
    click.echo(f"minicollab: {printable(line)}", err=True)
    sys.exit(code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="minicollab")
def main() -> None:
    """CollabLLM for one consumer GPU, offline: teach a local model when to ask and when to answer."""


def _stage_command(stage: str) -> click.Command:
    @click.command(stage, help=_HELP[stage])
    @run_or_recipe_argument
    @out_option
    @set_option
    @events_option
    @json_option
    def command(
        run_or_recipe: Path,
        out: Path | None,
        overrides: tuple[str, ...],
        events: Path | None,
        as_json: bool,
    ) -> None:
        with Run.open(run_or_recipe, stage, out, overrides) as run:
            result = _do(run, stage, events)
            click.echo(json.dumps(result, indent=1) if as_json else summary(run, stage, result))

    return command


for _name in STAGES:
    main.add_command(_stage_command(_name))
main.add_command(export_command(main.commands["export"]))
for _command in (
    init, tasks, judge_check, simulator_check, ablate, ambiguity, cache, chat, serve, doctor, fetch,
):  # fmt: skip
    main.add_command(_command)


@main.command("run")
@recipe_argument
@out_option
@set_option
@click.option("--until", type=click.Choice(STAGES), default=STAGES[-1], help="The last stage to run.")
@events_option
@json_option
def run_command(
    recipe: Path,
    out: Path | None,
    overrides: tuple[str, ...],
    until: str,
    events: Path | None,
    as_json: bool,
) -> None:
    """All stages of RECIPE in order. What is done already is not done again."""
    from minicollab.roles import gguf
    from minicollab.stages import is_unchanged

    results = {}
    with Run.open(recipe, "run", out, overrides) as run:
        weightless = until == "simulate" or (until == "train" and run.recipe.models.train_base)
        if not weightless:  # what would stop the run after hours: a policy without weights is
            with display("run", events) as progress:
                gguf(run, "policy", progress)
        for stage in STAGES[: STAGES.index(until) + 1]:
            with display(stage, events) as progress:  # the first look may fetch a model
                done = is_unchanged(run, stage, progress)
            run.save_recipe()
            if done:
                results[stage] = _do(run, stage, events)
            else:
                _in_a_process_of_its_own(run, stage, events)
                results[stage] = run.journal()["stages"][stage]["result"]
            if not as_json:
                click.echo(summary(run, stage, results[stage]))
    if as_json:
        click.echo(json.dumps(results, indent=1))


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM stops a command as Ctrl-C does, in order; only the exit code is another."""
    code = _INTERRUPTED
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background
        # asyncio stops in order only where SIGINT has Python's handler: deaf to it, but not ignoring.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal code
        code = 128 + number
        interrupt = signal.getsignal(signal.SIGINT)  # asyncio may have put its own there
        (interrupt if callable(interrupt) else signal.default_int_handler)(number, frame)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt:
        _fail("stopped. The same command goes on where it was.", code)
    finally:
        signal.signal(signal.SIGTERM, before)


def _in_a_process_of_its_own(run: Run, stage: str, events: Path | None) -> None:
    """So that all memory of a stage, the GPU's too, is free before the next one begins."""
    from rich.console import Console

    command = [sys.executable, "-m", "minicollab", stage, str(run.folder)]
    command += ["--events", str(events)] if events else []
    console = Console(stderr=True)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=_bound_to_us()) as child:
        try:
            status = child.wait()
        except BaseException:
            child.kill()
            raise
        finally:
            # It must be gone before others may have the folder.
            if child.wait() < 0 and console.is_terminal:  # killed in the midst of its bars
                console.show_cursor()
                console.line()
    if status < 0:
        raise MinicollabError(
            f"the {stage} stage was killed by signal {-status}", "Run the same command again."
        )
    if status:
        sys.exit(status)


def _bound_to_us() -> Callable[[], None]:
    """What a stage's process does first: it stops hearing Ctrl-C, since it is ended from here and
    one of us says so; and on Linux it asks to be killed when this process dies."""
    import ctypes

    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def bind() -> None:
        # Blocked, not ignored: SIGTERM ends it by way of the handler that Python gives Ctrl-C.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        if prctl:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # dead already
                os._exit(1)

    return bind


@main.command("bench")
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.option("--seconds", type=Number(0, min_open=True), default=60, show_default=True, help="Roughly.")
@set_option
@json_option
def bench_command(recipe: Path | None, seconds: float, overrides: tuple[str, ...], as_json: bool) -> None:
    """Measure this machine: tokens per second, and how long RECIPE will take on it.

    RECIPE is a recipe or a run folder. Without one, the built-in policy is measured.
    """
    from minicollab.bench import bench
    from minicollab.loading import recipe_at

    if overrides and not recipe:
        raise RecipeError("--set changes a recipe, and none was named", "Type: minicollab bench RECIPE.")
    chosen = recipe_at(recipe, overrides) if recipe else None
    with display("bench") as progress:
        result = bench(chosen, seconds, progress)
    click.echo(json.dumps(result, indent=1) if as_json else benched(result))


def _do(run: Run, stage: str, events: Path | None) -> dict[str, Any]:
    from minicollab.stages import run_stage

    with display(stage, events) as progress:
        return run_stage(run, stage, progress)
