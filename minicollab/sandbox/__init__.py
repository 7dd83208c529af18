"""Tests of model-written code, run where the code can do no harm: docs/security.md.

No isolation, no execution: where neither of the two kinds works, there is a SandboxError.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from types import FrameType
from typing import Any

from minicollab import recipe
from minicollab.cache.store import Store
from minicollab.engine.turns import turns
from minicollab.errors import SandboxError
from minicollab.sandbox import seccomp
from minicollab.sandbox.interpreter import interpreter
from minicollab.sandbox.jail import FAILED
from minicollab.sandbox.watch import Seen, watch

KINDS = {
    "namespaces": "namespaces of its own (files, processes, network, IPC), seccomp",
    "landlock": "Landlock and seccomp (this machine allows no namespaces)",
}
_FORMAT = 1  # raised when the same code and tests may come out otherwise
_PASSING = ("took longer than", "was killed by SIGKILL")  # may go well on a machine that is less busy
_HERE = Path(__file__).parent
_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",  # threads count as processes
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",  # the same order of sets every time
    "PYTHONNOUSERSITE": "1",
    "PYTHONSAFEPATH": "1",
}
# What must not work in a jail. {outside}: a file next to the jail's folder.
_PROBE = """
import socket, unittest

class TestCases(unittest.TestCase):
    def test_outside(self):
        for path in ({outside!r}, "/etc/passwd"):
            for mode in ("r", "r+"):
                with self.assertRaises(OSError):
                    open(path, mode)

    def test_network(self):
        with self.assertRaises(OSError):
            socket.socket()

    def test_inside(self):
        with open("file", "w") as file:
            file.write("x")
"""


@dataclass(frozen=True)
class Outcome:
    """How `tests` tests of some code went. `reason`: why it has not passed, in one line."""

    passed: bool
    tests: int
    reason: str


@dataclass(frozen=True)
class _Program:
    code: str
    tests: str
    future: asyncio.Future[dict[str, Any]]


class Sandbox:
    """Runs code and its unittest tests (a class `TestCases`, as in BigCodeBench) in jails.

    `line` says to people which isolation is in force: the first of `kinds` that works here. It
    takes its turn with the engines, after all models: tests that were asked for meanwhile run
    together, one on each core, and the order in which things happen never depends on time.
    SandboxError if there is no isolation, or if `options.python` cannot be run.
    """

    size = sys.maxsize  # for `Turns`: later than any model

    def __init__(
        self, options: recipe.Sandbox, store: Store | None = None, kinds: Sequence[str] = tuple(KINDS)
    ):
        self._options, self._store = options, store
        self._queue: list[_Program] = []
        self._running: list[_Program] = []
        self._python = interpreter(options.python or sys.executable)
        self._kind = self._first_that_works(kinds)
        self.line = KINDS[self._kind]

    async def test(self, code: str, tests: str) -> Outcome:
        """How the tests went, from the cache if these have been run on this code."""

        async def ask() -> dict[str, Any]:
            program = _Program(code, tests, asyncio.get_running_loop().create_future())
            self._queue.append(program)
            turns.wake(self)
            return await program.future

        if self._store is None:
            return Outcome(**await ask())
        request = {
            "sandbox": _FORMAT,
            "code": code,
            "tests": tests,
            "limits": self._options.model_dump(exclude={"python"}),
            "python": [self._python.version, self._python.distributions],
        }
        return Outcome(
            **await self._store.answer(
                "tests", request, ask, keep=lambda o: not o["reason"].startswith(_PASSING)
            )
        )

    def run(self, code: str, tests: str) -> Outcome:
        """The same, at once and not cached."""
        return self._run(code, tests, self._kind, threading.Event())

    # For `Turns`

    @property
    def busy(self) -> bool:
        return bool(self._queue)

    def step(self) -> None:
        """Run all that wait; returns when the last of them is done."""
        self._running, self._queue = [p for p in self._queue if not p.future.done()], []
        with _stopping() as stop, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            try:
                work = [pool.submit(self._run, p.code, p.tests, self._kind, stop) for p in self._running]
                outcomes = [asdict(each.result()) for each in work]
            except BaseException:
                stop.set()
                raise
        for program, outcome in zip(self._running, outcomes, strict=True):
            if stop.is_set():
                program.future.cancel()
            elif not program.future.done():
                program.future.set_result(outcome)

    def fail(self, error: Exception) -> None:
        for program in [*self._running, *self._queue]:
            if not program.future.done():
                program.future.set_exception(error)

    # One jail

    def _first_that_works(self, kinds: Sequence[str]) -> str:
        if sys.platform != "linux" or platform.machine() not in seccomp.MACHINES:
            raise SandboxError(
                f"model-written code is run on Linux (x86_64, aarch64) only, not on {platform.platform()}",
                "Use Linux, or WSL 2, or leave pass_rate out of the recipe.",
            )
        failures = []
        with tempfile.NamedTemporaryFile(prefix="minicollab-") as outside:
            for kind in kinds:
                try:
                    outcome = self._run("", _PROBE.format(outside=outside.name), kind, threading.Event())
                except SandboxError as error:
                    failures.append(f"{kind}: {error.what}")
                else:
                    if outcome.passed:
                        return kind
                    failures.append(f"{kind}: {outcome.reason}")
        raise SandboxError(
            f"there is no way here to run model-written code safely ({'; '.join(failures)})",
            "See docs/security.md for what the kernel must allow, or leave pass_rate out of the recipe.",
        )

    def _run(self, code: str, tests: str, kind: str, stop: threading.Event) -> Outcome:
        secret = secrets.token_hex(16)
        with _pipe() as (verdict, tell), _job(code, tests, secret) as job, _folder() as folder:
            told = self._jail(kind, folder, job, tell.fileno())
            command = [sys.executable, "-I", "-S", str(_HERE / "jail.py"), told]
            jail = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(job, tell.fileno()),
                env={},
                cwd="/",
                start_new_session=True,
            )
            with jail:
                tell.close()
                written = None if kind == "namespaces" else folder
                seen = watch(jail, verdict.fileno(), self._options, written, stop)
        return self._outcome(seen, secret.encode())

    def _jail(self, kind: str, folder: Path, job: int, tell: int) -> str:
        """What jail.py is told."""
        namespaces = kind == "namespaces"
        harness = (_HERE / "harness.py").read_text("utf-8")
        return json.dumps(
            {
                "parent": os.getpid(),
                "namespaces": namespaces,
                "folder": str(folder),
                "read": self._python.read,
                "links": self._python.links,
                "filter": seccomp.program(platform.machine(), namespaces).hex(),
                "limits": self._options.model_dump(),
                "environment": _ENVIRONMENT,
                "command": [self._python.path, "-c", harness, str(job), str(tell)],
            }
        )

    def _outcome(self, seen: Seen, secret: bytes) -> Outcome:
        if seen.status == FAILED:
            raise SandboxError(f"the jail cannot be made: {seen.errors}", "See docs/security.md.")
        if seen.over:
            return Outcome(False, 0, seen.over)
        for line in seen.said.splitlines():
            if line.startswith(secret):
                with suppress(Exception):  # whoever knows the secret may write anything
                    told = json.loads(line.removeprefix(secret))
                    return Outcome(told["passed"] is True, int(told["tests"]), str(told["reason"])[:300])
        if seen.status == 128 + signal.SIGXCPU:
            return Outcome(False, 0, f"used more than {self._options.cpu_seconds} s of processor time")
        return Outcome(False, 0, f"{seen.end} before the tests were done")


@contextmanager
def _folder() -> Iterator[Path]:
    """Where the jail's root is put, or where it writes. What is in it may resist shutil."""
    folder = Path(tempfile.mkdtemp(prefix="minicollab-"))
    try:
        yield folder
    finally:
        try:
            folder.rmdir()
        except OSError:
            subprocess.run(["chmod", "-R", "u+rwX", folder], stderr=subprocess.DEVNULL)
            subprocess.run(["rm", "-rf", folder], stderr=subprocess.DEVNULL)


@contextmanager
def _pipe() -> Iterator[tuple[FileIO, FileIO]]:
    read, write = os.pipe()
    with FileIO(read) as first, FileIO(write, "w") as second:
        yield first, second


@contextmanager
def _job(code: str, tests: str, secret: str) -> Iterator[int]:
    """A file in memory that holds what the harness is to do."""
    job = os.memfd_create("job")
    try:
        os.write(job, json.dumps({"code": code, "tests": tests, "secret": secret}).encode())
        os.lseek(job, 0, os.SEEK_SET)
        yield job
    finally:
        os.close(job)


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, beside what it does anyway: asyncio only takes note of it, and
    would go on when the last test has run."""
    stop = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: FrameType | None) -> None:
        stop.set()
        if callable(before):
            before(number, frame)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
