"""Libraries that talk when nobody asked them."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def no_logs() -> Iterator[None]:
    """No log line below ERROR and no warning of any library."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def no_output() -> Iterator[None]:
    """Banners are printed and bars are drawn, whatever one sets. Not around the training itself:
    the person's own progress goes to the same streams."""
    with contextlib.redirect_stdout(io.StringIO()), no_bars():
        yield


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """transformers draws progress bars on stderr that cannot be switched off one by one."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
