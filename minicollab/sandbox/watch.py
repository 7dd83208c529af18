"""Watching a jail from outside: what it says, how long it takes, and how much it uses."""

from __future__ import annotations

import errno
import os
import selectors
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from minicollab.recipe import Sandbox as Limits

_LOOK = 0.1  # seconds between two looks at memory and files
_MOST_FILES = 4096
_MOST_SAID = 1 << 16  # bytes of a verdict, and what is kept of standard error
_LONGEST_END = 30.0  # seconds, in which a jail that was told to must have ended


@dataclass(frozen=True)
class Seen:
    """`said` on the pipe for the verdict, `errors` on standard error (its beginning), the exit
    `status`; `over`: which limit ended it, if one did."""

    said: bytes
    errors: str
    status: int
    over: str

    @property
    def end(self) -> str:
        """How the process ended: by itself, or by which signal."""
        if self.status <= 128:
            return "ended"
        with suppress(ValueError):
            return f"was killed by {signal.Signals(self.status - 128).name}"
        return f"was killed by signal {self.status - 128}"


def watch(
    jail: subprocess.Popen[bytes], verdict: int, limits: Limits, folder: Path | None, stop: threading.Event
) -> Seen:
    """Read what comes until all is over, or more than the limits allow; then nothing is left of it.
    `folder`: where it writes, if that is on the host's disk."""
    try:
        said, errors, over = _read(jail, verdict, limits, folder, stop)
    finally:
        _end(jail)
    return Seen(bytes(said), errors.decode("utf-8", "replace").strip(), jail.returncode, over)


def _read(
    jail: subprocess.Popen[bytes], verdict: int, limits: Limits, folder: Path | None, stop: threading.Event
) -> tuple[bytearray, bytearray, str]:
    assert jail.stdout and jail.stderr
    said, errors = bytearray(), bytearray()
    printed, start, looked = 0, time.monotonic(), 0.0
    with selectors.DefaultSelector() as streams:
        for stream in (verdict, jail.stdout, jail.stderr):
            streams.register(stream, selectors.EVENT_READ)
        while streams.get_map():
            for key, _ in streams.select(_LOOK):
                data = os.read(key.fd, _MOST_SAID)
                if not data:
                    streams.unregister(key.fileobj)
                elif key.fd == verdict:
                    said += data
                else:
                    printed += len(data)
                    if key.fileobj is jail.stderr:
                        errors += data[: _MOST_SAID - len(errors)]
            now = time.monotonic()
            if stop.is_set():
                return said, errors, "was stopped"
            if now - start > limits.seconds:
                return said, errors, f"took longer than {limits.seconds:g} s"
            if printed > limits.output_kb << 10 or len(said) > _MOST_SAID:
                return said, errors, f"printed more than {limits.output_kb} kB"
            if now - looked > _LOOK:
                looked = now
                if _memory(jail.pid) > limits.memory_mb << 20:
                    return said, errors, f"used more than {limits.memory_mb} MB of memory"
                if folder and _too_much(folder, limits.file_mb << 20):
                    return said, errors, f"wrote more than {limits.file_mb} MB, or {_MOST_FILES} files"
    return said, errors, ""


def _memory(pid: int) -> int:
    """Bytes in memory of all processes of the jail."""
    import psutil  # type: ignore[import-untyped]

    total = 0
    with suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def _too_much(folder: Path, most: int) -> bool:
    size = files = 0
    waiting = [str(folder)]
    while waiting and size <= most and files <= _MOST_FILES:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    files += 1
                    with suppress(FileNotFoundError):  # just deleted
                        size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # folders in folders, deeper than one can look
                return True
    return size > most or files > _MOST_FILES


def _end(jail: subprocess.Popen[bytes]) -> None:
    jail.terminate()
    try:
        jail.wait(_LONGEST_END)
    except subprocess.TimeoutExpired:
        jail.kill()
        jail.wait()
