"""A model in figures: read from its GGUF, or from a small table while it is not fetched yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicollab.engine.sizing import Shape
from minicollab.errors import ModelError
from minicollab.models import describe, header


@dataclass(frozen=True)
class Model:
    """`shape` is what llama.cpp needs memory for; the rest are the sizes of its matrices: `width` of
    a hidden state, `inner` of the feed-forward layer, `queries` and `keys` of all heads together.
    `kind`: its quantization."""

    shape: Shape
    width: int
    inner: int
    queries: int
    keys: int
    kind: str

    @property
    def table(self) -> int:
        """Parameters of one embedding table."""
        return self.shape.vocabulary * self.width

    @property
    def linear(self) -> int:
        """Parameters of the seven linear modules of all layers: what QLoRA holds in 4 bit."""
        attention = 2 * self.width * (self.queries + self.keys)
        return self.shape.layers * (attention + 3 * self.width * self.inner)

    @property
    def rest(self) -> int:
        """All others: embeddings, an output table of its own if there is one, norms."""
        return max(self.shape.parameters - self.linear, self.table)

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter on the seven linear modules."""
        query, key = self.width + self.queries, self.width + self.keys
        return rank * self.shape.layers * (2 * query + 2 * key + 3 * (self.width + self.inner))


def read(path: Path) -> Model:
    """Of a GGUF, by its header. Raises ModelError."""
    metadata, parameters = header(path)
    architecture = metadata.get("general.architecture", "")

    def number(key: str, default: int = 0) -> int:
        value: Any = metadata.get(f"{architecture}.{key}", default)
        return int(value)

    heads, width = number("attention.head_count", 1), number("embedding_length")
    if not (heads and width and number("block_count")):
        raise ModelError(
            f"{path.name} is no transformer that has attention alone", "Use another GGUF, such as Qwen2.5's."
        )
    usual = width // max(heads, 1)
    return _model(
        path.stem,
        layers=number("block_count"),
        heads=heads,
        pairs=number("attention.head_count_kv", heads),
        head=number("attention.key_length", usual),
        width=width,
        inner=number("feed_forward_length"),
        vocabulary=metadata.get("tokenizer.ggml.tokens", 0),
        trained=number("context_length"),
        parameters=parameters,
        size=path.stat().st_size,
        kind=describe(path)["quantization"],
    )


def _model(
    name: str,
    *,
    layers: int,
    heads: int,
    pairs: int,
    head: int,
    width: int,
    inner: int,
    vocabulary: int,
    trained: int,
    parameters: int,
    size: int,
    kind: str,
) -> Model:
    """`pairs`: heads of keys and values, `head`: their width. A cell holds both at F16."""
    shape = Shape(name, parameters, layers, heads, 2 * 2 * layers * pairs * head, vocabulary, trained, size)
    return Model(shape, width, inner, heads * head, pairs * head, kind)


def known(name: str) -> Model | None:
    """Of a model of the recipes here, by its file's name; None for another."""
    file = name.rpartition("/")[2]
    row = _KNOWN.get(file.lower())
    if row is None:
        return None
    return _model(file.removesuffix(".gguf"), **dict(zip(_COLUMNS, row, strict=True)), kind="q4_k_m")


# From the configurations that their makers publish; sizes as the hub shows them.
_COLUMNS = (
    "layers", "heads", "pairs", "head", "width", "inner", "vocabulary", "trained", "parameters", "size"
)  # fmt: skip
_KNOWN: Mapping[str, tuple[int, ...]] = {
    "meta-llama-3.1-8b-instruct-q4_k_m.gguf":
        (32, 32, 8, 128, 4096, 14_336, 128_256, 131_072, 8_030_261_248, 4_920_000_000),
    "llama-3.2-3b-instruct-q4_k_m.gguf":
        (28, 24, 8, 128, 3072, 8192, 128_256, 131_072, 3_212_749_888, 2_020_000_000),
    "mistral-7b-instruct-v0.3-q4_k_m.gguf":
        (32, 32, 8, 128, 4096, 14_336, 32_768, 32_768, 7_248_023_552, 4_370_000_000),
    "qwen3-8b-q4_k_m.gguf":
        (36, 32, 8, 128, 4096, 12_288, 151_936, 40_960, 8_190_735_360, 5_030_000_000),
    "qwen3-4b-instruct-2507-q4_k_m.gguf":
        (36, 32, 8, 128, 2560, 9728, 151_936, 262_144, 4_022_468_096, 2_500_000_000),
    "qwen2.5-7b-instruct-q4_k_m.gguf":
        (28, 28, 4, 128, 3584, 18_944, 152_064, 32_768, 7_615_616_512, 4_680_000_000),
    "qwen2.5-1.5b-instruct-q4_k_m.gguf":
        (28, 12, 2, 128, 1536, 8960, 151_936, 32_768, 1_777_088_000, 1_120_000_000),
    "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf":
        (28, 12, 2, 128, 1536, 8960, 151_936, 32_768, 1_777_088_000, 1_117_320_768),
}  # fmt: skip
