"""The quantizations that a model can be exported in: their names, and the room that they need."""

from __future__ import annotations

from collections.abc import Sequence

from minicollab.errors import ModelError

KINDS = (
    *("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_0", "q5_1", "q4_k_m", "q4_k_s", "q4_0", "q4_1"),
    *("iq4_nl", "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s", "iq3_m", "iq3_s", "q2_k"),
    *("tq2_0", "tq1_0", "q2_0", "q1_0"),
)
"""What llama.cpp makes without an importance matrix. The last line is for models trained so."""

NEED_A_MATRIX = ("q2_k_s", "iq3_xs", "iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s")


def check_kind(kind: str) -> str:
    """The kind in lower case; raises ModelError, which names the known ones."""
    kind = kind.lower()
    if kind in KINDS:
        return kind
    known = kind in NEED_A_MATRIX
    raise ModelError(
        f"{kind} needs an importance matrix" if known else f"there is no quantization {kind!r}",
        f"Set export.quantization to one of {', '.join(KINDS)}.",
    )


def check_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """In lower case, each once. Raises ModelError."""
    return tuple(dict.fromkeys(map(check_kind, kinds)))


def model_name(kind: str) -> str:
    """Of the exported file."""
    return f"model-{kind}.gguf"


def most_bits(kind: str) -> float:
    """A number, on the mean: at most two and a half more than a kind is called by, since some
    tensors are kept finer."""
    return 16.0 if kind in ("f16", "bf16") else min(8.5, int(next(filter(str.isdigit, kind))) + 2.5)


def room(numbers: int, kinds: Sequence[str]) -> int:
    """Bytes that merging a model of so many numbers needs: F16, from which all others come, and every
    kind beside it."""
    return round(numbers * sum(map(most_bits, {*kinds, "f16"} if kinds else ())) / 8)
