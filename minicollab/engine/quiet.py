"""llama.cpp as a good neighbor: quiet on stderr, and not spinning on cores that others need."""

from __future__ import annotations

import os
from collections import deque
from functools import lru_cache
from typing import Any

_ERROR = 4  # GGML_LOG_LEVEL_ERROR of ggml.h
_errors: deque[str] = deque(maxlen=8)


@lru_cache(maxsize=1)
def quiet() -> Any:
    """Load llama.cpp, and silence it and ggml for the rest of this process; errors are kept.

    OpenMP reads its settings when it is loaded. By default its threads spin at every barrier for
    as long as they wait: on two cores shared with one other busy process, eight sequences of
    SmolLM2 then ran at under 8 tokens a second; with 1,000 spins at 178, and on two quiet cores
    as fast as without a limit (465 against 437).

    Returns the callback. The cache keeps it alive: C calls it for as long as the library is
    loaded, and a collected one would crash there.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    import llama_cpp as lc

    @lc.llama_log_callback
    def remember(level: int, text: bytes, _: Any) -> None:
        if level == _ERROR:
            _errors.append(text.decode("utf-8", "replace").strip())

    lc.llama_log_set(remember, None)
    return remember


def last_error() -> str:
    """The last error that llama.cpp logged since `quiet()`, taken out of the memory."""
    error = _errors[-1] if _errors else "no reason given"
    _errors.clear()
    return error
