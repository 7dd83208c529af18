"""llama.cpp writes its log straight to stderr; here it is held back, errors are remembered."""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import Any

_ERROR = 3  # GGML_LOG_LEVEL_ERROR
_errors: deque[str] = deque(maxlen=8)


@lru_cache(maxsize=1)
def quiet() -> Any:
    """Silence llama.cpp and ggml for the rest of this process.

    Returns the callback. The cache keeps it alive: C calls it for as long as the library is
    loaded, and a collected one would crash there.
    """
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
