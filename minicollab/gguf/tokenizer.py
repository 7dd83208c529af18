"""The tokenizer in a GGUF, for transformers.

Built from the file's own tokens, scores, merges and types. transformers' converters guess some of
that by the model's architecture: they read Llama 3's and SmolLM's numbers, Gemma's words and
Phi 3's blanks into other tokens than llama.cpp does.
"""

from __future__ import annotations

from typing import Any

from minicollab.errors import ModelError
from minicollab.gguf.architectures import setting
from minicollab.gguf.files import value
from minicollab.gguf.hf_config import REMEDY

_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
_BLANK = "\u2581"  # SentencePiece's space

# How text is cut before merging, by `tokenizer.ggml.pre`; for the others GPT-2's way is tried.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    "qwen2": _WORDS % r"\p{N}",
    "deepseek-r1-qwen": _WORDS % r"\p{N}",
    "llama-bpe": _WORDS % r"\p{N}{1,3}",
    "llama3": _WORDS % r"\p{N}{1,3}",
    "dbrx": _WORDS % r"\p{N}{1,3}",
}
# A word that is a token as a whole stays whole, whatever the merges would make of it.
_WHOLE_WORDS = ("llama-bpe", "llama3")


def hf_tokenizer(reader: Any) -> Any:
    """Raises ModelError for a kind of tokenizer that is not known here."""
    from transformers import PreTrainedTokenizerFast

    build = {"gpt2": _byte_level, "llama": _sentence_piece}.get(value(reader, "tokenizer.ggml.model"))
    if build is None:
        raise ModelError(
            f"tokenizers of the kind {value(reader, 'tokenizer.ggml.model')} are not known here", REMEDY
        )
    tokens = value(reader, "tokenizer.ggml.tokens")
    backend = build(reader, {token: i for i, token in enumerate(tokens)})
    _add_special(reader, tokens, backend)
    named = {}
    for name, key in {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}.items():
        token = value(reader, f"tokenizer.ggml.{key}_token_id")
        if token is not None:
            named[f"{name}_token"] = tokens[token]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=value(reader, "tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        model_max_length=setting(reader, "context_length"),
        **named,
    )


def _byte_level(reader: Any, vocabulary: dict[str, int]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models
    from tokenizers import pre_tokenizers as pre

    splitter = value(reader, "tokenizer.ggml.pre", "default")
    merges = [tuple(merge.split(" ")) for merge in value(reader, "tokenizer.ggml.merges", [])]
    made = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=splitter in _WHOLE_WORDS))
    bytes_only = pre.ByteLevel(add_prefix_space=False, use_regex=splitter not in _SPLITS)
    if splitter in _SPLITS:
        cut = pre.Split(Regex(_SPLITS[splitter]), behavior="isolated")
        made.pre_tokenizer = pre.Sequence([cut, bytes_only])
    elif splitter == "smollm":
        made.pre_tokenizer = pre.Sequence([pre.Digits(individual_digits=True), bytes_only])
    else:
        made.pre_tokenizer = bytes_only
    made.decoder = decoders.ByteLevel()
    return made


def _sentence_piece(reader: Any, vocabulary: dict[str, int]) -> Any:
    """Pieces are joined where the joined piece has the best score, so scores say what merges say."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = value(reader, "tokenizer.ggml.scores")
    merges = [
        (-scores[i], vocabulary[piece[:at]], vocabulary[piece[at:]], piece[:at], piece[at:])
        for piece, i in vocabulary.items()
        for at in range(1, len(piece))
        if piece[:at] in vocabulary and piece[at:] in vocabulary
    ]
    unknown = value(reader, "tokenizer.ggml.unknown_token_id")
    made = Tokenizer(
        models.BPE(
            vocabulary,
            [merge[3:] for merge in sorted(merges)],
            unk_token=None if unknown is None else list(vocabulary)[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = value(reader, "tokenizer.ggml.add_space_prefix", True)
    blanks = normalizers.Replace(" ", _BLANK)
    made.normalizer = normalizers.Sequence([normalizers.Prepend(_BLANK), blanks] if prefix else [blanks])
    steps = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if prefix else []))
    return made


def _add_special(reader: Any, tokens: list[str], backend: Any) -> None:
    """Tokens that text is searched for before anything else."""
    from tokenizers import AddedToken

    types = value(reader, "tokenizer.ggml.token_type") or []
    # As llama.cpp does for models of this name: their control tokens swallow the blanks after them.
    swallow = any(name in str(value(reader, "general.name", "")).lower() for name in ("phi-3", "phi3"))
    found: dict[int, list[Any]] = {_CONTROL: [], _USER_DEFINED: []}
    for token, kind in zip(tokens, types, strict=False):
        if kind in found:
            rstrip = swallow and token not in ("<unk>", "<s>", "<|endoftext|>")
            added = AddedToken(token, normalized=False, rstrip=rstrip, special=kind == _CONTROL)
            found[kind].append(added)
    backend.add_special_tokens(found[_CONTROL])
    backend.add_tokens(found[_USER_DEFINED])
