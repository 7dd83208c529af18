"""Text of models, data and errors, made harmless for a terminal."""

from __future__ import annotations

import re

# A terminal's escape sequences (ECMA-48: CSI and two-character ones; xterm's OSC), no longer than
# any that means something, and then whatever else is no text: controls, and marks that turn the
# direction of what follows.
_ESCAPE = re.compile(
    r"\x1b\[[0-?]{0,64}[ -/]{0,8}[@-~]|\x1b\][^\x07\x1b]{0,256}(?:\x07|\x1b\\)|\x1b[ -/]{0,8}[0-~]"
)
_UNFINISHED = re.compile(r"\x1b(?:\[[0-?]{0,64}[ -/]{0,8}|\][^\x07\x1b]{0,256}\x1b?|[ -/]{0,8})\Z")
_NO_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str, whole: bool = True) -> str:
    """What a terminal may be given of a text that is not ours. While it is not the whole of it, what
    may be an escape sequence's beginning is held back, so that what was given stays as it is."""
    if not whole:
        text = _UNFINISHED.sub("", text)
    return _NO_TEXT.sub("", _ESCAPE.sub("", text))
