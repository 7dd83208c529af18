"""Running many conversations at once, of which one error is told."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from minicollab.errors import MinicollabError

T = TypeVar("T")


def run_together(work: Coroutine[Any, Any, T]) -> T:
    """asyncio.run, where conversations that fail for the reason that another has told say no more.

    Where a loop runs already, as in the cells of a notebook, `work` has one in a thread of its own.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run(work)
    return _run_beside(work)


def _run(work: Coroutine[Any, Any, T]) -> T:
    def tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # What ends the process, as Ctrl-C and SIGTERM do, leaves the loop and needs no word here.
        if not isinstance(context.get("exception"), (MinicollabError, SystemExit, KeyboardInterrupt)):
            loop.default_exception_handler(context)

    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(tell)
        return runner.run(work)


def _run_beside(work: Coroutine[Any, Any, T]) -> T:
    stop: Future[Any] = Future()

    async def stoppable() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task
        stop.set_result(lambda: loop.call_soon_threadsafe(task.cancel))
        return await work

    with ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(_run, stoppable()).result()
        except KeyboardInterrupt:
            # What asyncio does with Ctrl-C, which only the main thread hears.
            stop.result()()
            raise
