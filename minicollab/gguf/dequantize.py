"""A GGUF as a Hugging Face folder: what the trainer trains on, when the GGUF is all there is."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from minicollab.engine.quiet import quiet
from minicollab.errors import ModelError
from minicollab.files import aside, need_space
from minicollab.gguf.files import parameters, read_gguf, value
from minicollab.progress import Progress, silent
from minicollab.silence import no_bars

_PROBE = "Don't pay $3.99 for 12345 apples in 2024;\n\n\n  x1y22 = f(a_b[i+1])\t# naïve 日本語 ½ 😀 THEY'RE"
_REMEDY = "Set models.train_base in the recipe to the Hugging Face folder that this GGUF was made from."


def dequantize_to_hf(gguf: Path, folder: Path, progress: Progress = silent) -> Path:
    """Write the GGUF's weights, tokenizer and chat template as a float32 folder; returns `folder`.

    Done once: a folder that is there is complete, because it got its name last.
    float32 because it holds the GGUF's values exactly. bfloat16 would round what llama.cpp
    does not, and that noise would be in every comparison of the two afterwards.
    Raises ModelError if transformers cannot read this architecture or tokenizer.
    """
    if folder.is_dir():
        return folder
    reader = read_gguf(gguf)
    need_space(folder.parent, 4 * parameters(reader), f"Dequantizing {gguf.name}")
    what = f"dequantize {gguf.name}"
    progress(what, 0, 3)
    tokenizer = _tokenizer(gguf, reader)
    progress(what, 1, 3)
    model = _model(gguf)
    progress(what, 2, 3)
    with aside(folder) as partial, no_bars():
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    progress(what, 3, 3)
    return folder


def _model(gguf: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with _readable(gguf), no_bars():
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
        )
    # The weights are plain now; save_pretrained refuses while these say otherwise.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    return model


def _tokenizer(gguf: Path, reader: Any) -> Any:
    from transformers import AutoTokenizer

    with _readable(gguf), no_bars():
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    # transformers guesses these and is wrong about chat models: for SmolLM2 it ends a turn with
    # <|im_start|>, for Qwen2.5 with <|endoftext|>. The GGUF says what they are.
    tokens = reader.get_field("tokenizer.ggml.tokens")
    for name, key in {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}.items():
        token = value(reader, f"tokenizer.ggml.{key}_token_id")
        if token is not None:
            setattr(tokenizer, f"{name}_token", tokens.contents(token))
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.model_max_length = value(reader, f"{value(reader, 'general.architecture')}.context_length")
    if value(reader, "tokenizer.ggml.pre") == "smollm":
        _split_digits(tokenizer)
    _check_tokenizer(gguf, tokenizer)
    return tokenizer


def _split_digits(tokenizer: Any) -> None:
    """transformers forgets that SmolLM reads numbers digit by digit."""
    from tokenizers import pre_tokenizers as pre

    steps = [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre.Sequence(steps)


def _check_tokenizer(gguf: Path, tokenizer: Any) -> None:
    """Training must see the tokens that llama.cpp will see."""
    import llama_cpp as lc

    quiet()
    params = lc.llama_model_default_params()
    params.vocab_only = True
    model = lc.llama_model_load_from_file(str(gguf).encode(), params)
    if not model:
        raise ModelError(f"llama.cpp cannot load {gguf}", "Download or convert the GGUF again.")
    text = _PROBE.encode()
    room = len(text) + 1  # one more than a token a byte: some vocabularies put a space in front
    out = (lc.llama_token * room)()
    n = lc.llama_tokenize(lc.llama_model_get_vocab(model), text, len(text), out, room, False, False)
    lc.llama_model_free(model)
    if tokenizer.encode(_PROBE, add_special_tokens=False) != list(out[:n]):
        raise ModelError(f"transformers reads text into other tokens than llama.cpp for {gguf.name}", _REMEDY)


@contextlib.contextmanager
def _readable(gguf: Path) -> Any:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        raise ModelError(f"transformers cannot read {gguf.name}: {error}", _REMEDY) from error
