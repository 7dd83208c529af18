from __future__ import annotations

import asyncio
import os
import signal
import threading

import pytest

from minicollab.errors import RunError
from minicollab.running import run_together


def failing(error: Exception) -> None:
    """One conversation fails, and eight others with the same error as they are stopped."""

    async def conversation() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise error

    async def work() -> None:
        others = [asyncio.create_task(conversation()) for _ in range(8)]
        await asyncio.sleep(0)
        assert others
        raise error

    with pytest.raises(type(error)):
        run_together(work())


def test_what_one_has_told_the_others_do_not_tell_again(caplog: pytest.LogCaptureFixture) -> None:
    failing(RunError("the row is bad", "Repair it."))
    assert caplog.records == []


def test_a_second_stop_while_they_wind_down_is_told_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        told = {"message": "Task exception was never retrieved", "exception": KeyboardInterrupt()}
        asyncio.get_running_loop().call_exception_handler(told)

    run_together(work())
    assert caplog.records == []


def test_a_bug_in_the_others_is_told(caplog: pytest.LogCaptureFixture) -> None:
    failing(KeyError("bug"))
    assert any("KeyError" in str(record.exc_info) for record in caplog.records)


def test_it_runs_inside_a_loop_that_runs_as_in_a_notebook() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    async def cell() -> int:
        return run_together(work())

    assert asyncio.run(cell()) == 7


def test_ctrl_c_stops_it_there_too() -> None:
    """The kernel of a notebook hears it in the main thread, which waits."""
    ended = threading.Event()

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def cell() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a kernel, not asyncio's own
        with pytest.raises(KeyboardInterrupt):
            run_together(work())

    asyncio.run(cell())
    assert ended.wait(10)
