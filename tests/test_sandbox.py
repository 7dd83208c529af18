"""Code that is run in the sandbox can neither harm nor forge; docs/security.md says what that means."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from string import Template

import psutil
import pytest

from minicollab import sandbox
from minicollab.cache.store import Store
from minicollab.engine.turns import Turns
from minicollab.errors import SandboxError
from minicollab.recipe import Sandbox as Options
from minicollab.sandbox import Outcome, Sandbox, seccomp
from tests.hostile import BEGIN, END, PAGE, PROGRAMS, TESTS, Hostile, table

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no sandbox elsewhere")

RIGHT = "def task_func(a, b):\n    return a + b\n"
WRONG = "def task_func(a, b):\n    return 5\n"
SECRET = "MINICOLLAB_HOSTILE"
SYSTEM_PYTHON = Path("/usr/bin/python3")


class Host:
    """What hostile programs are after, and whether they got it."""

    def __init__(self, folder: Path):
        self.scratch, self.canary = folder / "scratch", folder / "kept" / "canary"
        self.scratch.mkdir()
        self.canary.parent.mkdir()
        self.canary.write_text("alive")
        self.canary.chmod(0o644)
        # Whatever is started carries this name in its command line.
        self.python = folder / "python-of-the-hostile"
        self.python.symlink_to(sys.executable)
        self.tcp, self.udp = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
        self.abstract = socket.socket(socket.AF_UNIX)
        self.datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.tcp.bind(("127.0.0.1", 0))
        self.port = self.tcp.getsockname()[1]
        self.udp.bind(("127.0.0.1", self.port))
        self.abstract.bind(f"\0minicollab-{self.port}")
        self.datagrams.bind(f"\0minicollab-{self.port}-datagrams")
        self.tcp.listen()
        self.abstract.listen()
        for server in (self.tcp, self.udp, self.abstract, self.datagrams):
            server.setblocking(False)

    def code(self, program: Hostile, pid: str = "") -> str:
        home = next((p for p in Path.home().iterdir() if p.is_file()), self.canary)
        values = {
            "CANARY": self.canary, "HOME_FILE": home, "REPOSITORY": PAGE.parents[1], "SECRET": SECRET,
            "PID": pid or os.getpid(), "PORT": self.port,
        }  # fmt: skip
        return Template(program.code).safe_substitute(values)

    def unharmed(self) -> None:
        assert self.canary.read_text() == "alive"
        assert (self.canary.stat().st_nlink, self.canary.stat().st_mode) == (1, 0o100644)
        assert [path.name for path in self.canary.parent.iterdir()] == ["canary"]
        assert list(self.scratch.glob("minicollab-*")) == []
        for server in (self.tcp, self.abstract):
            with pytest.raises(BlockingIOError):
                server.accept()
        for server in (self.udp, self.datagrams):
            with pytest.raises(BlockingIOError):
                server.recv(1)
        assert processes_with("python-of-the-hostile") == []


def processes_with(mark: str) -> list[str]:
    """The command lines of all living processes that have `mark` in them."""
    lines = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
    return [line for line in lines if mark in line]


@lru_cache
def jails(python: Path, kind: str = "namespaces", **limits: float) -> Sandbox:
    return Sandbox(Options(python=str(python), **{"seconds": 60, **limits}), kinds=(kind,))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    tmp_path_factory.getbasetemp()  # pytest's own folder shall not be made in ours
    # Nor ours in it: others must be able to pass through.
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        host = Host(Path(folder))
        patch.setenv(SECRET, "secret")
        patch.setattr(tempfile, "tempdir", str(host.scratch))
        yield host


@pytest.fixture(scope="module")
def ours(host: Host) -> Sandbox:
    return jails(host.python)


# Verdicts

CASES = "import unittest, unittest.mock\nclass TestCases(unittest.TestCase):\n    "
MUCH = """
import os, subprocess, tempfile, threading

class Sum:
    def __init__(self, n):
        self.n = n

    def __eq__(self, other):
        return self.n == getattr(other, "n", other)

def task_func(a, b):
    print(a, b)
    with tempfile.NamedTemporaryFile("w+") as file:
        file.write(str(a))
        file.seek(0)
        a = int(file.read())
    os.makedirs("folder/below", exist_ok=True)
    done = []
    thread = threading.Thread(target=done.append, args=(b,))
    thread.start()
    thread.join()
    echo = subprocess.run(["echo", str(done[0])], capture_output=True, text=True)
    return Sum(a + int(echo.stdout))
"""
READS = """
def task_func(name):
    print(name)
    return open(name).read()
"""
MOCKS = """
    @unittest.mock.patch("builtins.print")
    @unittest.mock.patch("builtins.open", unittest.mock.mock_open(read_data="x"))
    def test_a(self, shown):
        self.assertEqual(task_func("file"), "x")
        shown.assert_called_once_with(unittest.mock.ANY)
"""
SUBTESTS = """
    def test_a(self):
        for n in (3, 4):
            with self.subTest():
                self.assertEqual(task_func(n, n), 6)
"""
SET_UP = """
    @classmethod
    def setUpClass(cls):
        1 / 0

    def test_a(self):
        pass
"""
VERDICTS = {
    "right": (RIGHT, TESTS, 2, ""),
    "much that code may do": (MUCH, TESTS, 2, ""),
    "mocks of the tests": (READS, CASES + MOCKS, 1, ""),
    "wrong": (WRONG, TESTS, 2, "1 of 2 tests failed: test_negative: AssertionError: 5 != 0"),
    "no function": (
        "x = 1",
        TESTS,
        2,
        "2 of 2 tests failed: test_negative: NameError: name 'task_func' is not",
    ),
    "no Python": ("def task_func(a, b", TESTS, 0, "the code does not run: SyntaxError: '(' was never closed"),
    "no module": ("import nowhere", TESTS, 0, "the code does not run: ModuleNotFoundError: No module named"),
    "no tests": (RIGHT, f"{CASES}pass", 0, "there are no tests"),
    "no class": (RIGHT, "x = 1", 0, "there is no class TestCases in the tests"),
    "broken tests": (RIGHT, "1 / 0", 0, "the tests do not run: ZeroDivisionError: division by zero"),
    "subtests": (RIGHT, CASES + SUBTESTS, 1, "1 of 1 tests failed: test_a: AssertionError: 8 != 6"),
    "set-up": (
        RIGHT,
        CASES + SET_UP,
        1,
        "1 of 1 tests failed: setUpClass: ZeroDivisionError: division by zero",
    ),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_verdicts(ours: Sandbox, name: str) -> None:
    code, tests, count, reason = VERDICTS[name]
    outcome = ours.run(code, tests)
    assert (outcome.passed, outcome.tests) == (not reason, count)
    assert outcome.reason.startswith(reason) and bool(outcome.reason) == bool(reason)


def test_two_runs_of_one_program_are_alike(ours: Sandbox) -> None:
    code = "def task_func(a, b):\n    return [*set('abcdefgh'), __import__('os').listdir('/tmp')]\n"
    first = ours.run(code, TESTS)
    assert not first.passed and ours.run(code, TESTS) == first


# Hostile programs


@pytest.fixture(scope="module")
def outcomes(host: Host) -> dict[str, Outcome]:
    """Those of all programs that end soon, some run at a time."""
    programs = [p for p in PROGRAMS if not p.slow]
    with ThreadPoolExecutor(4) as pool:  # many of them only wait
        run = [pool.submit(jails(host.python, **p.limits).run, host.code(p), TESTS) for p in programs]
        return {program.name: each.result() for program, each in zip(programs, run, strict=True)}


@pytest.mark.parametrize("program", [p for p in PROGRAMS if not p.slow], ids=lambda p: p.name)
def test_hostile_programs_neither_pass_nor_get_out(outcomes: dict[str, Outcome], program: Hostile) -> None:
    outcome = outcomes[program.name]
    assert not outcome.passed and program.ends in outcome.reason


def test_they_leave_the_host_as_it_was(host: Host, outcomes: dict[str, Outcome]) -> None:
    assert outcomes
    host.unharmed()


@pytest.mark.slow
@pytest.mark.parametrize("program", [p for p in PROGRAMS if p.slow], ids=lambda p: p.name)
def test_slow_hostile_programs(host: Host, program: Hostile) -> None:
    outcome = jails(host.python, **program.limits).run(host.code(program), TESTS)
    assert not outcome.passed and program.ends in outcome.reason
    host.unharmed()


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_hostile_programs_where_there_are_no_namespaces(host: Host, program: Hostile) -> None:
    python = readable_by_all(host)
    outcome = jails(python, "landlock", **program.limits).run(host.code(program), TESTS)
    assert not outcome.passed and outcome.reason
    host.unharmed()


def readable_by_all(host: Host) -> Path:
    """Root becomes somebody else in a jail, who may not look into root's folders."""
    if os.geteuid() or not Path(sys.base_prefix).is_relative_to("/root"):
        return host.python
    if not SYSTEM_PYTHON.exists():
        pytest.skip("no interpreter outside of /root")
    return SYSTEM_PYTHON


_AS_ANYBODY = """
import json, os, sys
from minicollab.recipe import Sandbox as Options
from minicollab.sandbox import Sandbox
from tests.hostile import TESTS
for kind, name, code, limits, ends in json.load(sys.stdin):
    sandbox = Sandbox(Options(**{"seconds": 60, **limits}), kinds=(kind,))
    outcome = sandbox.run(code.replace("MY_PID", str(os.getpid())), TESTS)
    if outcome.passed != (not ends) or (kind == "namespaces" and ends not in outcome.reason):
        print(kind, name, outcome)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["namespaces", "landlock"])
def test_hostile_programs_of_an_ordinary_user(host: Host, repo: Path, kind: str) -> None:
    """Once more as somebody who is not root: the host is now his own, and the kernel gives less."""
    if os.geteuid() or not SYSTEM_PYTHON.exists():
        pytest.skip("takes root, and an interpreter that others may run")
    packages = next((repo / ".venv/lib").glob("python*/site-packages"))
    mine = (host.scratch, host.canary, host.canary.parent)
    programs = [(kind, "right", RIGHT, {}, "")]
    programs += [(kind, p.name, host.code(p, pid="MY_PID"), dict(p.limits), p.ends) for p in PROGRAMS]
    for path in mine:
        os.chown(path, 54321, 54321)
    environment = {"PYTHONPATH": f"{repo}:{packages}", "TMPDIR": str(host.scratch), SECRET: "secret"}
    done = subprocess.run(
        [SYSTEM_PYTHON, "-B", "-c", _AS_ANYBODY], input=json.dumps(programs), capture_output=True, text=True,
        env=environment,
        cwd="/", user=54321, group=54321, extra_groups=[],
    )  # fmt: skip
    for path in mine:
        os.chown(path, 0, 0)
    assert (done.stdout, done.stderr) == ("", "")
    host.unharmed()


def test_the_page_lists_them_all() -> None:
    listed = PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]
    assert listed == table(), "Run: python -m tests.hostile"


# No sandbox, no execution


def test_without_isolation_nothing_is_run(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    filter_nothing = bytes.fromhex("0600000000" + "00ff7f")  # BPF: return ALLOW
    monkeypatch.setattr(seccomp, "program", lambda *_: filter_nothing)
    with pytest.raises(SandboxError, match=r"test_network: AssertionError: OSError not raised") as told:
        Sandbox(Options(), kinds=("namespaces",))
    assert "docs/security.md" in told.value.remedy and told.value.code == 7


def test_a_jail_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "program", lambda *_: bytes(8))  # no program for the kernel
    with pytest.raises(SandboxError, match=r"namespaces: .*prctl: Invalid argument.*landlock: "):
        Sandbox(Options())


def test_a_machine_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.platform, "machine", lambda: "pdp11")
    with pytest.raises(SandboxError, match=r"on Linux \(x86_64, aarch64\) only"):
        Sandbox(Options())


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/true"])
def test_an_interpreter_that_is_none(python: str) -> None:
    with pytest.raises(SandboxError, match="is not a Python that can be run") as told:
        Sandbox(Options(python=python))
    assert "sandbox.python" in told.value.remedy


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_numbers_of_system_calls(machine: str) -> None:
    headers = {"x86_64": "x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}
    header = Path("/usr/include") / headers[machine]
    if not header.exists():
        pytest.skip("the kernel's headers are not installed")
    lines = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())
    known = dict(lines)
    ours = {name: of[machine] for name, of in seccomp._NUMBERS.items()}
    assert {name: n for name, n in ours.items() if n != known.get(name, n)} == {}
    assert sum(name in known for name in ours) > 80


# In a run


def test_tests_are_run_once_and_kept(host: Host, tmp_path: Path) -> None:
    async def ask(store: Store) -> list[Outcome]:
        ours = Sandbox(Options(python=str(host.python)), store)
        return await asyncio.gather(*(ours.test(code, TESTS) for code in (RIGHT, WRONG, RIGHT)))

    stores = [Store(tmp_path)]
    outcomes = asyncio.run(ask(stores[0]))
    assert [outcome.passed for outcome in outcomes] == [True, False, True]
    assert stores[0].misses == 2
    stores[0].close()
    stores.append(Store(tmp_path))
    assert asyncio.run(ask(stores[1])) == outcomes
    assert (stores[1].hits, stores[1].misses) == (3, 0)
    stores[1].close()


def test_an_outcome_of_the_clock_is_not_kept(host: Host, tmp_path: Path) -> None:
    """On a machine that is less busy it may be another."""
    store = Store(tmp_path)
    sandbox = Sandbox(Options(python=str(host.python), seconds=0.5), store)
    for _ in range(2):
        outcome = asyncio.run(sandbox.test("while True:\n    pass", TESTS))
        assert outcome.reason == "took longer than 0.5 s"
    assert (store.hits, store.misses) == (0, 2)
    store.close()


def test_tests_wait_until_no_model_has_work(ours: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Model:
        """Always has work while it has steps left; the size is that of the largest there are."""

        size, left = 1 << 42, 3
        busy = property(lambda self: self.left > 0)

        def step(self) -> None:
            self.left -= 1
            order.append("model")

        def fail(self, error: Exception) -> None:
            raise error

    both = Turns()
    monkeypatch.setattr(sandbox, "turns", both)

    async def ask() -> None:
        asked = [asyncio.create_task(ours.test(RIGHT, TESTS)) for _ in range(2)]
        for each in asked:
            each.add_done_callback(lambda _: order.append("tests"))
        await asyncio.sleep(0)
        both.wake(Model())
        assert [(await each).passed for each in asked] == [True, True]

    asyncio.run(ask())
    assert order == ["model"] * 3 + ["tests"] * 2


def test_what_goes_wrong_reaches_who_asked(ours: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(FileNotFoundError):
        asyncio.run(ours.test(RIGHT, TESTS))


_SLEEPING = """
import asyncio, sys
from minicollab.recipe import Sandbox as Options
from minicollab.running import run_together
from minicollab.sandbox import Sandbox
sandbox = Sandbox(Options(python=sys.argv[1], seconds=600, output_kb=10_000))
code = "def task_func(a, b):\\n    while True: __import__('time').sleep(1)"

async def ask():
    await asyncio.gather(*(sandbox.test(code + str(n), sys.argv[2]) for n in range(4)))

print("asking", flush=True)
run_together(ask())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_whoever_ends_leaves_nothing_behind(host: Host, number: int) -> None:
    command = [sys.executable, "-c", _SLEEPING, str(host.python), TESTS]
    environment = {**os.environ, "TMPDIR": str(host.scratch), SECRET: "secret"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as asking:
        assert asking.stdout and asking.stdout.readline() == b"asking\n"
        wait_for(lambda: any(line.startswith(str(host.python)) for line in processes_with(host.python.name)))
        asking.send_signal(number)
        asking.wait(30)
    wait_for(lambda: not processes_with(host.python.name))
    if number == signal.SIGKILL:  # nobody was left to do it
        for folder in host.scratch.glob("minicollab-*"):
            folder.rmdir()
    host.unharmed()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
