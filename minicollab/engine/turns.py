"""Which engine steps next, where several share a process."""

from __future__ import annotations

import asyncio
from typing import Protocol

_SETTLE = 12  # turns of the event loop between two steps, for coroutines to ask for more


class Stepper(Protocol):
    size: int  # of the model's file, in bytes

    @property
    def busy(self) -> bool: ...

    def step(self) -> None: ...

    def fail(self, error: Exception) -> None: ...


class Turns:
    """One step at a time, the smallest model that has work first.

    A small policy's steps are cheap: once its replies are all there, simulator and judge find
    everything they have to read in one large batch. Order depends on requests, never on time.
    """

    def __init__(self) -> None:
        self._engines: list[Stepper] = []
        self._task: asyncio.Task[None] | None = None

    def wake(self, engine: Stepper) -> None:
        """`engine` has work."""
        if engine not in self._engines:
            self._engines = sorted([*self._engines, engine], key=lambda e: e.size)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self._engines:
            for _ in range(_SETTLE):
                await asyncio.sleep(0)
            self._engines = [e for e in self._engines if e.busy]
            if self._engines:
                try:
                    self._engines[0].step()
                except Exception as error:
                    self._engines[0].fail(error)


turns = Turns()
