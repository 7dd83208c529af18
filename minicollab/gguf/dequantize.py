"""A GGUF as a Hugging Face folder: what the trainer trains on, when the GGUF is all there is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minicollab.engine.weights import Weights
from minicollab.errors import ModelError
from minicollab.files import aside, need_space
from minicollab.gguf.architectures import architecture, tensor_names, to_hugging_face
from minicollab.gguf.files import dequantized, parameters, read_gguf, shape
from minicollab.gguf.hf_config import REMEDY, hf_config
from minicollab.gguf.tokenizer import hf_tokenizer
from minicollab.progress import Progress, silent
from minicollab.silence import no_bars, no_logs

_PROBE = "Don't pay $3.99 for 12345 apples in 2024;\n\n\n  x1y22 = f(a_b[i+1])\t# naïve 日本語 ½ 😀 THEY'RE"
_FILE = "2GB"  # of weights at most, or one tensor


def dequantize_to_hf(gguf: Path, folder: Path, progress: Progress = silent) -> Path:
    """Write the GGUF's weights, tokenizer and chat template as a float32 folder; returns `folder`.

    Done once: a folder that is there is complete, because it got its name last. One file of
    weights is in memory at a time.
    float32 because it holds the GGUF's values exactly. bfloat16 would round what llama.cpp
    does not, and that noise would be in every comparison of the two afterwards.
    Raises ModelError if there is no way from this architecture or tokenizer to transformers'.
    """
    if folder.is_dir():
        return folder
    reader = read_gguf(gguf)
    model = _empty_model(reader)
    need_space(folder.parent, 4 * parameters(reader), f"Dequantizing {gguf.name}")
    what = f"dequantize {gguf.name}"
    progress(what, 0, 1)
    with aside(folder) as partial, no_bars(), no_logs():
        partial.mkdir()
        model.config.save_pretrained(partial)
        model.generation_config.save_pretrained(partial)
        hf_tokenizer(reader).save_pretrained(partial)
        _check_tokenizer(gguf, partial)
        _write_weights(reader, model, partial, lambda done: progress(what, done, 1))
    progress(what, 1, 1)
    return folder


def _empty_model(reader: Any) -> Any:
    """A model of the GGUF's architecture and sizes, without memory for its weights."""
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = architecture(reader).model_type
    try:
        with torch.device("meta"), no_logs():
            made = AutoConfig.for_model(kind, **hf_config(reader))
            model: Any = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    except (KeyError, ValueError, TypeError, StrictDataclassError) as error:
        raise ModelError(f"transformers has no such {kind} model: {error}", REMEDY) from error
    model.config.architectures = [type(model).__name__]
    return model


def _write_weights(reader: Any, model: Any, folder: Path, progress: Callable[[float], None]) -> None:
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    sources = _sources(reader, model)
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name in sources}
    files = split_torch_state_dict_into_shards(wanted, max_shard_size=_FILE)
    for done, (file, names) in enumerate(files.filename_to_tensors.items()):
        progress(done / len(files.filename_to_tensors))
        tensors = {}
        for name in names:
            source = sources[name]
            rows = to_hugging_face(source.name, dequantized(source), reader)
            tensors[name] = torch.from_numpy(rows)
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if files.is_sharded:
        index = {"metadata": files.metadata, "weight_map": files.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _sources(reader: Any, model: Any) -> dict[str, Any]:
    """Parameter of the model → the GGUF's tensor for it. Raises ModelError unless they match."""
    tensors, names = {t.name: t for t in reader.tensors}, tensor_names(reader)
    sources = {}
    for parameter, empty in model.state_dict().items():
        if parameter == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        module, _, kind = parameter.rpartition(".")
        source = tensors.pop(f"{names.get_name(module)}.{kind}", None)
        if source is None or shape(source) != tuple(empty.shape):
            raise ModelError(f"the GGUF has no {parameter} of shape {tuple(empty.shape)}", REMEDY)
        sources[parameter] = source
    unknown = [name for name in tensors if not name.startswith("rope_")]  # those are in the config
    if unknown:
        raise ModelError(f"transformers has no place for {unknown[0]}", REMEDY)
    return sources


def _check_tokenizer(gguf: Path, folder: Path) -> None:
    """Training must see the tokens that llama.cpp will see, in a text and in a chat."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    texts = {_PROBE: False}  # and whether control tokens are read in it
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": _PROBE}]
        try:
            texts[tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)] = True
        except Exception as error:  # a template is a program, and a stranger's
            raise ModelError(
                f"the chat template of {gguf.name} fails: {error}", "Use another GGUF."
            ) from None
    weights = Weights(gguf, vocab_only=True)
    try:
        same = all(
            tokenizer.encode(text, add_special_tokens=False) == weights.read(text, special=control)
            for text, control in texts.items()
        )
    finally:
        weights.free()
    if not same:
        raise ModelError(f"transformers reads text into other tokens than llama.cpp for {gguf.name}", REMEDY)
