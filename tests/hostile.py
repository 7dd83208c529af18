"""Hostile programs, as data: each wants to harm, to spy, or to pass without doing the task.

The task is to add two numbers. A program that attacks the host adds them only once it has got
through, so that a pass is an escape. `python -m tests.hostile` writes the table in docs/security.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent
from typing import Any

PAGE = Path(__file__).parents[1] / "docs/security.md"
BEGIN, END = "<!-- hostile: begin -->\n", "<!-- hostile: end -->"
TESTS = """
import unittest

class TestCases(unittest.TestCase):
    def test_negative(self):
        self.assertEqual(task_func(-1, 1), 0)

    def test_small(self):
        self.assertEqual(task_func(2, 3), 5)
"""
_IMPORTS = """
import ctypes, fcntl, glob, os, platform, resource, signal, socket, sys, termios, threading, time, unittest
"""


@dataclass(frozen=True)
class Hostile:
    """`does`: what it tries to; `ends`: what the reason of its outcome says, in the jail of namespaces.
    `attack` is what the tested function does before it adds, unless it is `whole`, a program of its own.
    $CANARY, $HOME_FILE, $REPOSITORY, $PID and $PORT are the host's, $SECRET is the name of a variable
    in its environment. `limits` go into the recipe's section `sandbox`."""

    name: str
    does: str
    ends: str
    attack: str
    limits: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = False
    slow: bool = False

    @property
    def code(self) -> str:
        if self.whole:
            return self.attack
        return (
            f"{_IMPORTS}\n\ndef task_func(a, b):\n{indent(self.attack.strip(), ' ' * 4)}\n    return a + b\n"
        )


def whole(name: str, does: str, ends: str, attack: str) -> Hostile:
    return Hostile(name, does, ends, attack, whole=True)


SHORT, LONG = {"seconds": 0.5}, "took longer than 0.5 s"
ENDED = "before the tests were done"
CHANGED = "changed what the tests rely on"
ABSENT, REFUSED, FULL = "FileNotFoundError", "PermissionError", "No space left on device"

EXHAUSTING = (
    Hostile("fork bomb", "fork for ever", LONG, """
while True:
    try:
        os.fork()
    except OSError:
        pass
""", SHORT),
    Hostile("thread bomb", "start threads without end", "RuntimeError: can't start new thread", """
while True:
    threading.Thread(target=time.sleep, args=(60,)).start()
"""),
    Hostile("10 GB", "allocate 10 GB", "MemoryError", "x = bytearray(10**10)"),
    Hostile("many eaters", "fork 8 processes that fill 100 MB each", "used more than 256 MB of memory", """
for _ in range(8):
    if not os.fork():
        x = b"x" * 10**8
        time.sleep(60)
time.sleep(60)
""", {"memory_mb": 256}),
    Hostile("endless loop", "loop for ever", LONG, "while True: pass", SHORT),
    Hostile("deaf loop", "ignore every signal, and loop for ever", LONG, """
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
while True: pass
""", SHORT),
    Hostile("busy loop", "use the processor for longer than it may", "used more than 1 s of processor time",
        "while True: pass", {"cpu_seconds": 1}, slow=True),
    Hostile("sleeper", "sleep for ever", LONG, "time.sleep(10**6)", SHORT),
    Hostile("chatter", "print lines for ever", "printed more than 64 kB", "while True: print('again')"),
    Hostile("one long line", "write to standard error without a newline", "printed more than 64 kB", """
while True: os.write(2, b"x" * 65536)
"""),
    Hostile("open files", "open files until there are no more", "Too many open files", """
kept = []
while True: kept.append(open("/dev/null"))
"""),
    Hostile("sparse file", "make a file of 10 GB with nothing in it", "File too large", """
open("big", "wb").truncate(10**10)
"""),
    Hostile("full disk", "fill file after file", FULL, """
for n in range(1000):
    open(f"{n}", "wb").write(b"x" * 10**7)
"""),
    Hostile("a million files", "make a million empty files", FULL, """
for n in range(10**6): open(f"{n}", "w").close()
"""),
    Hostile("deep folders", "make folders in folders without end", FULL, """
while True:
    os.mkdir("d")
    os.chdir("d")
"""),
    Hostile("shared memory", "fill /dev/shm", FULL, """
for n in range(1000):
    open(f"/dev/shm/{n}", "wb").write(b"x" * 10**7)
"""),
    Hostile("memory of nobody", "keep memory in files without a name", REFUSED, """
kept = [os.memfd_create("x") for _ in range(100)]
"""),
    Hostile("higher limits", "raise its own limits", "ValueError", """
resource.setrlimit(resource.RLIMIT_NPROC, (10**4, 10**4))
"""),
)  # fmt: skip

SPYING = (
    Hostile("password file", "read /etc/passwd", ABSENT, "open('/etc/passwd').read()"),
    Hostile("home", "read a file in the home directory", ABSENT, "open('$HOME_FILE').read()"),
    Hostile("keys", "find keys in the .ssh of any home", "IndexError", """
[*glob.glob("/root/.ssh/*"), *glob.glob("/home/*/.ssh/*")][0]
"""),
    Hostile("environment", "read the host's environment", "KeyError", "os.environ['$SECRET']"),
    Hostile("repository", "read the repository", ABSENT, "open('$REPOSITORY/pyproject.toml').read()"),
    Hostile("other environments", "read the environments of all processes", "LookupError: in none", """
for path in glob.glob("/proc/[0-9]*/environ"):
    try:
        if "$SECRET" in open(path).read():
            return a + b
    except OSError:
        pass
raise LookupError("in none")
"""),
    Hostile("other memory", "read the memory of its parent", REFUSED, """
open(f"/proc/{os.getppid()}/mem", "rb").read(1)
"""),
)  # fmt: skip

WRITING = (
    Hostile("outside", "write to a file of the host", ABSENT, "open('$CANARY', 'a').write('x')"),
    Hostile("dots", "go up with .. and write there", ABSENT, """
open("../" * 40 + "$CANARY"[1:], "a").write("x")
"""),
    Hostile("symbolic link", "write through a link to the outside", ABSENT, """
os.symlink("$CANARY", "link")
open("link", "r+").write("x")
"""),
    Hostile("hard link", "link a file of the host into its folder", ABSENT, """
os.link("$CANARY", "hard")
open("hard", "a").write("x")
"""),
    Hostile("mode", "take a file of the host from its owner", ABSENT, """
os.chmod("$CANARY", 0)
if os.stat("$CANARY").st_mode & 0o777:
    raise PermissionError
"""),
    Hostile("rename", "move the folder above its own away", "OSError", "os.rename('/tmp/work', '/work')"),
    Hostile("python itself", "write into Python's library", "RuntimeError: refused", """
try:
    open(os.__file__, "a").write("x")
except OSError:  # its owner is told something else than others
    raise RuntimeError("refused")
"""),
    Hostile("kernel settings", "set what the kernel runs when a program crashes", "Read-only file system", """
open("/proc/sys/kernel/core_pattern", "w").write("|/bin/sh")
"""),
    whole("pickle", "run a command from a pickle that it wrote", "AssertionError", """
import os, pickle

class Bomb:
    def __reduce__(self):
        return os.system, ("echo x >> $CANARY",)

def task_func(a, b):
    open("p", "wb").write(pickle.dumps(Bomb()))
    return a + b if pickle.load(open("p", "rb")) == 0 else None
"""),
)  # fmt: skip

CONNECTING = (
    Hostile("loopback", "connect to a server on this machine", REFUSED, """
socket.create_connection(("127.0.0.1", $PORT), 5)
"""),
    Hostile("beyond", "connect to a machine elsewhere", REFUSED, """
socket.create_connection(("192.0.2.1", 80), 5)
"""),
    Hostile("datagram", "send a datagram", REFUSED, """
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", $PORT))
"""),
    Hostile("name server", "look up a name", "gaierror", "socket.getaddrinfo('example.com', 80)"),
    Hostile("abstract socket", "connect to a socket of the host that is no file", "ConnectionRefused", """
socket.socket(socket.AF_UNIX).connect("\\0minicollab-$PORT")
"""),
    Hostile("pair of sockets", "send through a socket that it got otherwise", "ConnectionRefused", """
socket.socketpair(type=socket.SOCK_DGRAM)[0].sendto(b"x", "\\0minicollab-$PORT-datagrams")
"""),
    Hostile("netlink", "talk to the kernel's network", REFUSED, """
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
"""),
)  # fmt: skip

KILLING = (
    Hostile("parent", "kill its parent", "RuntimeError: it lives", """
os.kill(os.getppid(), signal.SIGKILL)
time.sleep(0.1)
raise RuntimeError("it lives")
"""),
    Hostile("host", "kill the process that started it all", "ProcessLookupError", "os.kill($PID, 9)"),
    Hostile("everybody", "kill one process after the other", f"was killed by SIGKILL {ENDED}", """
for pid in range(1, 10**5):
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
raise LookupError("nobody")
"""),
    Hostile("all at once", "kill all that it may", "ProcessLookupError", "os.kill(-1, signal.SIGKILL)"),
    Hostile("by the kernel", "have the kernel send the signal", "ProcessLookupError", """
ours, theirs = socket.socketpair()
fcntl.fcntl(ours, fcntl.F_SETOWN, $PID)
fcntl.fcntl(ours, fcntl.F_SETSIG, signal.SIGKILL)
fcntl.fcntl(ours, fcntl.F_SETFL, os.O_ASYNC)
theirs.send(b"x")
"""),
    Hostile("lower limits", "take all open files from another process", "ProcessLookupError", """
resource.prlimit($PID, resource.RLIMIT_NOFILE, (0, 0))
"""),
    Hostile("daemon", "leave a process behind that has cut all ties", "RuntimeError: left", """
if not os.fork():
    os.setsid()
    if not os.fork():
        time.sleep(10**6)
    os._exit(0)
raise RuntimeError("left")
"""),
)  # fmt: skip

_REFUSED_CALL = """
libc = ctypes.CDLL(None, use_errno=True)
if libc.{} < 0:
    raise OSError(ctypes.get_errno(), "refused")
"""
KERNEL = (
    Hostile("mount", "mount a file system", REFUSED,
        _REFUSED_CALL.format("mount(b'x', b'/tmp', b'tmpfs', 0, None)")),
    Hostile("user namespace", "become root in a namespace of its own", REFUSED,
        _REFUSED_CALL.format("unshare(0x10000000)")),
    Hostile("trace", "trace another process", REFUSED, _REFUSED_CALL.format("ptrace(16, 1, 0, 0)")),
    Hostile("shared segments", "list the host's System V memory", REFUSED,
        _REFUSED_CALL.format("shmctl(0, 13, ctypes.create_string_buffer(256))")),
    Hostile("semaphores", "remove the host's semaphores", REFUSED, _REFUSED_CALL.format("semctl(0, 0, 0)")),
    Hostile("message queue", "read the host's messages", REFUSED,
        _REFUSED_CALL.format("msgrcv(0, ctypes.create_string_buffer(256), 8, 0, 2048)")),
    Hostile("other root", "change its root", REFUSED, "os.chroot('/tmp')"),
    Hostile("way in", "use bpf, io_uring and performance counters", REFUSED, """
libc = ctypes.CDLL(None, use_errno=True)
numbers = {"x86_64": (321, 425, 298), "aarch64": (280, 425, 241)}[platform.machine()]
if all(libc.syscall(number, 0, 0, 0) < 0 and ctypes.get_errno() == 1 for number in numbers):
    raise PermissionError
"""),
    Hostile("terminal", "type a command into the terminal", "Inappropriate ioctl", """
fcntl.ioctl(0, termios.TIOCSTI, b"x")
"""),
    Hostile("crash", "read at address 0", f"was killed by SIGSEGV {ENDED}", "ctypes.string_at(0)"),
)  # fmt: skip

CHEATING = (
    Hostile("early end", "end with success before the asserts", f"ended {ENDED}", "os._exit(0)"),
    whole("polite end", "call sys.exit when it is imported", "does not run: SystemExit", """
import sys

def task_func(a, b):
    return None

sys.exit(0)
"""),
    Hostile("exit", "raise SystemExit in the tested function", "SystemExit", "raise SystemExit(0)"),
    Hostile("interrupt", "raise KeyboardInterrupt in the tested function", "ended by KeyboardInterrupt",
        "raise KeyboardInterrupt"),
    Hostile("skip", "have the test skipped", "it was skipped", "raise unittest.SkipTest"),
    Hostile("last words", "say on every open file that it has passed", f"ended {ENDED}", """
for n in range(3, 256):
    try:
        os.write(n, b'{"passed": true, "tests": 2, "reason": ""}\\n')
    except OSError:
        pass
os._exit(0)
"""),
    whole("at exit", "end with success when Python ends", "AssertionError", """
import atexit, os

atexit.register(os._exit, 0)

def task_func(a, b):
    return None
"""),
    Hostile("child", "let a forked copy pass in its place", f"ended {ENDED}", """
if child := os.fork():
    os.waitpid(child, 0)
    os._exit(0)
"""),
    whole("no asserts", "make assertEqual do nothing, when it is imported", CHANGED, """
import unittest

unittest.TestCase.assertEqual = lambda *a: None

def task_func(a, b):
    return None
"""),
    whole("no asserts, later", "make assertEqual do nothing, when it is called", CHANGED, """
import unittest

def task_func(a, b):
    unittest.TestCase.assertEqual = lambda *a: None
"""),
    whole("hollow assert", "leave assertEqual in its place without its code", CHANGED, """
import unittest

def task_func(a, b):
    unittest.TestCase.assertEqual.__code__ = (lambda self, a, b, msg=None: None).__code__
"""),
    whole("this test only", "give the running test an assertEqual of its own", CHANGED, """
import sys

def task_func(a, b):
    sys._getframe(1).f_locals["self"].assertEqual = lambda *a: None
"""),
    whole("other tests", "replace the tests that are still to come", CHANGED, """
import sys

def task_func(a, b):
    case = type(sys._getframe(1).f_locals["self"])
    case.test_negative = case.test_small = lambda self: None
    return 0
"""),
    whole("false unittest", "put another module in the place of unittest", CHANGED, """
import sys, types, unittest

class TestCase(unittest.TestCase):
    def assertEqual(self, *a):
        pass

sys.modules["unittest"] = types.ModuleType("unittest")
sys.modules["unittest"].TestCase = TestCase

def task_func(a, b):
    return None
"""),
    whole("false loader", "have no tests found", CHANGED, """
import unittest

unittest.TestLoader.getTestCaseNames = lambda *a: []

def task_func(a, b):
    return None
"""),
    whole("false result", "have every test counted as passed", CHANGED, """
import unittest

unittest.TestResult.startTest = lambda self, test: self.addSuccess(test)

def task_func(a, b):
    return None
"""),
    whole("false classes", "have all classes built without their methods", CHANGED, """
import builtins

build = builtins.__build_class__
builtins.__build_class__ = lambda f, name, *bases, **k: build(lambda: None, name, *bases, **k)

def task_func(a, b):
    return None
"""),
    whole("own tests", "bring tests that pass, and a main program that says so", "AssertionError", """
import unittest

def task_func(a, b):
    return None

class TestCases(unittest.TestCase):
    def test_small(self):
        pass

if __name__ in ("__main__", "__test__"):
    print("OK")
"""),
    whole("equal to all", "return an object that equals everything", CHANGED, """
class All:
    def __eq__(self, other):
        return True

def task_func(a, b):
    return All()
"""),
    whole("equal number", "return a number that equals every number", CHANGED, """
class Any(int):
    def __eq__(self, other):
        return True

def task_func(a, b):
    return Any(5)
"""),
    whole("borrowed equality", "return the object of unittest.mock that equals everything", CHANGED, """
from unittest.mock import ANY

def task_func(a, b):
    return ANY
"""),
)  # fmt: skip

PROGRAMS = EXHAUSTING + SPYING + WRITING + CONNECTING + KILLING + KERNEL + CHEATING


def table() -> str:
    """As in docs/security.md."""
    rows = [f"| {p.name} | {p.does} | {p.ends} |" for p in PROGRAMS]
    return "\n".join(["| program | tries to | what comes of it |", "| --- | --- | --- |", *rows, ""])


if __name__ == "__main__":
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}", "utf-8")
