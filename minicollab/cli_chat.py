"""`minicollab chat`: talk to the result."""

from __future__ import annotations

import io
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from minicollab.cli_common import Number, display
from minicollab.errors import MinicollabError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from minicollab.chat import Chat, Reply

_NARROW = 80  # columns; below, two answers do not fit side by side
_HISTORY = 1000  # lines


@click.command("chat")
@click.argument("run_or_gguf")
@click.option(
    "--adapter", type=click.Path(path_type=Path, exists=True), help="A LoRA GGUF, or a PEFT adapter's folder."
)
@click.option("--system", default="", metavar="TEXT", help="What the model is told first.")
@click.option(
    "--context",
    type=click.IntRange(512),
    help="Tokens that a talk may have; default: by free memory.",
)
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="Of one reply.")
@click.option("--temperature", type=Number(0), help="0: always the likeliest token.")
@click.option("--top-p", type=Number(0, 1, min_open=True), help="Only the likeliest tokens.")
@click.option("--seed", type=int, help="For the same replies again; default: a new one each time.")
def chat(
    run_or_gguf: str,
    adapter: Path | None,
    system: str,
    context: int | None,
    max_tokens: int,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
) -> None:
    """Talk to a model: a run's trained one, or a GGUF's (its path, or a name as in recipes).

    Without a terminal every line of standard input is a message, and the replies go to standard
    output.
    """
    from minicollab.chat import open_chat

    given: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
    given = {name: value for name, value in given.items() if value is not None}
    seed = secrets.randbelow(2**31) if seed is None else seed
    with _Sigterm() as sigterm:
        with display("chat") as progress:
            talk = open_chat(run_or_gguf, adapter, given, seed, context, progress)
        talk.tell(system)
        if sys.stdin and sys.stdin.isatty() and sys.stdout.isatty():
            _Terminal(talk, sigterm).run(run_or_gguf)
        else:
            _Pipe(talk, sigterm).run()


class _Pipe:
    """Lines in, replies out; notices and errors on standard error."""

    def __init__(self, talk: Chat, sigterm: _Sigterm):
        self._talk, self._sigterm = talk, sigterm

    def run(self) -> None:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")
        try:
            for line in sys.stdin or ():  # None if it was closed
                if line.strip() and not self.obey(line.rstrip()):
                    break
        except KeyboardInterrupt:
            raise SystemExit(128 + signal.SIGINT) from None

    def obey(self, line: str) -> bool:
        """Do what a message or a command asks for. False if it is to leave."""
        from minicollab.chat_commands import COMMANDS, parse

        line = line.encode("utf-8", "replace").decode()  # what was no UTF-8 has come as lone surrogates
        name, rest = parse(line) or ("", line)
        with self._sigterm.in_order():
            if name == "compare":
                self.compare(rest)
            elif name in ("", "regenerate"):
                with _written() as write:
                    reply = self._talk.regenerate(write) if name else self._talk.ask(line, write)
                self._remark(reply)
            elif do := COMMANDS[name].do:
                self.notice(do(self._talk, rest))
        return name != "quit"

    def compare(self, question: str) -> None:
        said: dict[str, str] = {}
        whole = self._talk.compare(question, said.__setitem__)
        for name, text in said.items():
            click.echo(f"{name}: {text.strip()}")
        if not whole:
            self.stopped("(stopped)")

    def stopped(self, how: str) -> None:
        """By Ctrl-C, which ends a pipe."""
        self.notice(how)
        raise KeyboardInterrupt

    def notice(self, text: str) -> None:
        click.secho(text, err=True, dim=True)

    def _remark(self, reply: Reply) -> None:
        talk = self._talk
        if reply.left_out:
            number = f"{reply.left_out} oldest message{'s' * (reply.left_out > 1)}"
            self.notice(f"(the context of {talk.engine.context} tokens is full: without the {number})")
        if reply.ended == "length":
            self.notice(f"(cut at {talk.options.max_tokens} tokens)")
        elif reply.ended == "stopped":
            self.stopped("(stopped)" if reply.text else "(stopped; as if it was not asked)")
        elif not reply.text:
            self.notice("(the model said nothing)")


class _Terminal(_Pipe):
    def run(self, named: str = "") -> None:
        strength = self._talk.strength
        self.notice(
            f"{named}{', with adapter' * (strength is not None)}. /help lists commands, Ctrl-D leaves."
        )
        with _line_editing():
            for line in _typed():
                try:
                    if not self.obey(line):
                        break
                except MinicollabError as error:
                    self.notice(str(error))

    def compare(self, question: str) -> None:
        from rich.console import Console
        from rich.live import Live

        self._talk.needs_adapter()
        console, said = Console(highlight=False), {"base": "", "trained": ""}
        with Live(console=console, transient=True, vertical_overflow="ellipsis") as live:

            def hear(name: str, text: str) -> None:
                said[name] = text
                live.update(_side_by_side(said, console))

            whole = self._talk.compare(question, hear)
        console.print(_side_by_side(said, console))
        if not whole:
            self.stopped("(stopped)")

    def stopped(self, how: str) -> None:
        self.notice(how)  # and the talk goes on


@contextmanager
def _written() -> Iterator[Any]:
    """Prints what is heard as it comes, and ends the line."""
    shown = ""

    def write(text: str) -> None:
        nonlocal shown
        text = text.lstrip()
        click.echo(text[len(shown) :], nl=False)
        shown = text

    try:
        yield write
    finally:
        if shown:
            click.echo()


def _typed() -> Iterator[str]:
    """What a person types, until Ctrl-D; Ctrl-C drops the line. A pasted text is one message."""
    while True:
        try:
            line = input("> ")
        except KeyboardInterrupt:
            click.echo()
            continue
        except EOFError:
            return click.echo()
        if line.strip():
            yield line


@contextmanager
def _line_editing() -> Iterator[None]:
    """Readline, if this Python has it: its lines are remembered from one chat to the next."""
    from minicollab.models import user_cache

    try:
        import readline
    except ImportError:
        yield
        return
    readline.parse_and_bind("set enable-bracketed-paste on")  # so that a paste of many lines stays one
    readline.parse_and_bind(r'"\e\C-m": "\C-v\C-j"')  # Alt-Enter: a line break
    history = user_cache() / "chat_history"
    with suppress(OSError):
        readline.read_history_file(history)
    readline.set_history_length(_HISTORY)
    try:
        yield
    finally:
        with suppress(OSError):
            readline.write_history_file(history)


class _Sigterm:
    """Ends the chat: at once where it loads or waits for a line, and `in_order` where it answers.

    In a chat Ctrl-C need not end the program, and elsewhere SIGTERM does what Ctrl-C does. There it
    raises an exception, which in the midst of asyncio's loop may lose a task, and in the midst of its
    set-up the reply itself.
    """

    def __init__(self) -> None:
        self._code, self._answering = 0, False
        self._again = threading.Timer(0, lambda: None)

    def __enter__(self) -> _Sigterm:
        self._before = signal.signal(signal.SIGTERM, self._leave)
        return self

    def __exit__(self, *_: object) -> None:
        self._again.cancel()
        signal.signal(signal.SIGTERM, self._before)

    @contextmanager
    def in_order(self) -> Iterator[None]:
        self._answering = True
        try:
            yield
        finally:
            self._answering = False
            if self._code:
                raise SystemExit(self._code)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        self._code = 128 + number
        if not self._answering:
            raise SystemExit(self._code)
        stop = signal.getsignal(signal.SIGINT)
        if callable(stop) and stop is not signal.default_int_handler:  # asyncio's: it cancels the reply
            with suppress(KeyboardInterrupt):  # where the reply is done already
                return stop(number, frame)
        self._again = threading.Timer(0.05, os.kill, (os.getpid(), number))  # it may not have begun
        self._again.daemon = True
        self._again.start()


def _side_by_side(said: dict[str, str], console: Console) -> RenderableType:
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    panels = [Panel(Text(text.strip()), title=name) for name, text in said.items()]
    if console.width < _NARROW:
        return Group(*panels)
    table = Table.grid(expand=True)
    for _ in panels:
        table.add_column(ratio=1)
    table.add_row(*panels)
    return table
