"""Does the exported file say what the trained model says? Measured, not assumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from minicollab.errors import StageError
from minicollab.gguf.chats import MOST, stopped, template_faults
from minicollab.gguf.files import blocks, read_gguf, value
from minicollab.gguf.logits import (
    Talk,
    llama_logits,
    load_tokenizer,
    mean_kl,
    perplexity,
    tokenized,
    torch_logits,
)
from minicollab.progress import Progress, silent
from minicollab.prompts import as_trained

Chat = Sequence[dict[str, str]]

MIN_LOGIT_CHANGE = 1e-3
MAX_KL = 0.01
MAX_KL_SHARE = 0.1  # of the adapter's own effect: a slight adapter merged wrongly stays below MAX_KL
KL_NOISE = 3e-4  # no bound goes below it: float16 costs 1e-5 (135M and 1.5B), a bfloat16 base 6e-5
MAX_KL_BASE = 0.3  # two quantizations of one model are nearer than that, two models are not
_EOS = "tokenizer.ggml.eos_token_id"
TEMPLATE_KEY = "tokenizer.chat_template"


def verify(
    base: Path,
    adapter: Path,
    models: Mapping[str, Path],
    hf_base: Path,
    adapter_dir: Path,
    chats: Sequence[Chat],
    scale: float = 1.0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Compare torch (float32 base + PEFT adapter times `scale`) with what llama.cpp makes of the files.

    `models`: the merged files by quantization, "f16" among them; none if only the adapter is
    exported. `chats`: conversations that end with an assistant's reply. Both sides read the same
    token ids, those of the Hugging Face tokenizer's chat template; what is compared are their
    next-token distributions at every token of the replies (the first 32 of each): mean KL in nats,
    and `perplexity`, by quantization. The first of `models` also answers the chats' prompts.

    `ok` means that

    - the adapter moves llama.cpp's logits;
    - the F16 merge agrees with torch, far better than the base does (`kl_torch_base`), and so does
      the adapter put on the base;
    - chat template (`as_trained`), tokenizer and special tokens are the base's, and an app makes the
      tokens of a conversation that the model was trained on, with one BOS at most;
    - of the prompts on which the base ends its turn, the trained model ends at least half as many.
      Fewer by one or two is a model that answers at more length; half is one that lost its end.

    `failures` names whatever does not hold, with the tensor or key. What a quantization costs is
    reported, not judged: that is the user's choice.
    """
    if not chats:
        raise StageError("there is no conversation to verify the export on", "Give at least one.")
    steps = _steps(progress, 5 + len(models))
    next(steps)
    tokenizer = load_tokenizer(hf_base)
    talks = [talk for chat in chats if (talk := tokenized(tokenizer, chat)).reply]
    result, in_torch, adapted = _on_the_base(base, adapter, hf_base, adapter_dir, talks, scale, steps)
    result |= _merged(models, talks, in_torch, adapted, steps)
    faults = [
        f"{key} of {path.name}: {how}"
        for path in models.values()
        for key, how in differing_keys(base, path).items()
    ]
    prompts, first = [talk.prompt for talk in talks], next(iter(models.values()), None)
    next(steps)
    ended = stopped(base, prompts)
    next(steps)
    trained = stopped(first, prompts) if first else stopped(base, prompts, adapter)
    result["stopped"] = {"base": ended, "trained": trained, "tokens": MOST}
    if first:
        wrong = template_faults(first, tokenizer, [chat[:-1] for chat in chats])
        result["template"] = not wrong
        faults += wrong
    faults = failures(result) + faults
    if models and faults:
        faults += [f"{name} is not base + adapter" for name in unlike(base, adapter, models["f16"])]
    next(steps, None)
    return result | {"failures": faults, "ok": not faults}


def _steps(progress: Progress, total: int) -> Iterator[None]:
    """One a run of a model, and the end."""
    for done in range(total):
        progress("verify", done, total)
        yield
    progress("verify", total, total)


def _on_the_base(
    base: Path,
    adapter: Path,
    hf_base: Path,
    adapter_dir: Path,
    talks: Sequence[Talk],
    scale: float,
    steps: Iterator[None],
) -> tuple[dict[str, Any], Any, Any]:
    """What the adapter does to the base, in torch and in llama.cpp, and the logits of both with it."""
    import numpy as np

    in_torch, torch_base = torch_logits(hf_base, adapter_dir, talks, scale)
    next(steps)
    bare = llama_logits(base, talks)
    next(steps)
    adapted = llama_logits(base, talks, adapter)
    result = {
        "prompts": len(talks),
        "tokens": len(in_torch),
        "scale": scale,
        "adapter_max_logit_change": float(np.abs(adapted - bare).max()),
        "kl_torch_base": mean_kl(in_torch, torch_base),
        "kl_base_torch_llama": mean_kl(torch_base, bare),
        "kl_torch_adapter_on_base": mean_kl(in_torch, adapted),
        "perplexity_torch": perplexity(in_torch, talks),
    }
    return result, in_torch, adapted


def _merged(
    models: Mapping[str, Path], talks: Sequence[Talk], in_torch: Any, adapted: Any, steps: Iterator[None]
) -> dict[str, Any]:
    """How near each merged file comes to torch, and the F16 one to base and adapter."""
    measured: dict[str, Any] = {}
    result: dict[str, Any] = {"models": measured}
    for kind, path in models.items():
        next(steps)
        found = llama_logits(path, talks)
        kl, cost = mean_kl(in_torch, found), perplexity(found, talks)
        measured[kind] = {"kl": kl, "perplexity": cost, "bytes": path.stat().st_size}
        if kind == "f16":
            result["kl_torch_merged_f16"] = kl
            result["kl_adapter_on_base_merged"] = mean_kl(adapted, found)
    return result


def failures(result: Mapping[str, Any]) -> list[str]:
    """What of the figures of `verify` does not hold."""
    found = []
    # Written so that NaN fails.
    change, noise = result["adapter_max_logit_change"], result["kl_base_torch_llama"]
    if not change > MIN_LOGIT_CHANGE:
        found.append(f"the adapter changes no logit by more than {change:.2g} (at least {MIN_LOGIT_CHANGE})")
    if not noise < MAX_KL_BASE:
        found.append(
            f"the base GGUF is another model than torch's by a KL of {noise:.3g} (below {MAX_KL_BASE})"
        )
    limit = min(MAX_KL, max(KL_NOISE, MAX_KL_SHARE * result["kl_torch_base"]))
    if noise > MAX_KL:  # torch has the weights that the GGUF was quantized from
        limit = 2 * noise
    loose = max(limit, 3 * noise)  # on a quantized base llama.cpp rounds activations, too
    for key, what, most in (
        ("kl_torch_merged_f16", "the F16 merge differs from torch", limit),
        ("kl_torch_adapter_on_base", "the adapter on the base differs from torch", loose),
        ("kl_adapter_on_base_merged", "the F16 merge differs from base and adapter", loose),
    ):
        if key in result and not result[key] < most:
            found.append(f"{what} by a KL of {result[key]:.3g} (below {most:.3g})")
    ended = result["stopped"]
    if 2 * ended["trained"] < ended["base"]:
        found.append(
            f"the model ends its turn within {ended['tokens']} tokens on {ended['trained']} prompts, "
            f"the base on {ended['base']} of {result['prompts']}: {_EOS}, or the training, is wrong"
        )
    return found


def differing_keys(base_gguf: Path, final_gguf: Path) -> dict[str, str]:
    """Tokenizer keys that the final file does not have as the base has them, and how they differ."""
    base, final = read_gguf(base_gguf), read_gguf(final_gguf)
    keys = [k for k, field in base.fields.items() if k.startswith("tokenizer.") and len(field.data)]
    differing = {}
    for key in dict.fromkeys([*keys, TEMPLATE_KEY, _EOS]):
        wanted, found = value(base, key), value(final, key)
        if wanted is None:
            differing[key] = "the base has none"
        elif found is None:
            differing[key] = "missing"
        elif found != wanted and not (key == TEMPLATE_KEY and found == as_trained(wanted)):
            differing[key] = f"{str(found)[:40]!r} instead of {str(wanted)[:40]!r}"
    return differing


def unlike(base_gguf: Path, adapter_gguf: Path, merged: Path) -> list[str]:
    """Tensors of the F16 merge that are not the base's plus alpha / rank * B @ A: those that are
    missing, or off by more than a hundredth of their size (Frobenius norm). Looked for only when a
    comparison has failed: it reads every weight."""
    import numpy as np

    adapter = read_gguf(adapter_gguf)
    alpha, halves = value(adapter, "adapter.lora.alpha"), {t.name: t.data for t in adapter.tensors}
    found = {t.name: t for t in read_gguf(merged).tensors}
    wrong = []
    for tensor in read_gguf(base_gguf).tensors:
        name = tensor.name
        if name not in found or list(found[name].shape) != list(tensor.shape):
            wrong.append(name)
            continue
        off = size = 0.0
        a, b = halves.get(f"{name}.lora_a"), halves.get(f"{name}.lora_b")
        for (start, wanted), (_, rows) in zip(blocks(tensor), blocks(found[name]), strict=True):
            if a is not None and b is not None:
                wanted = wanted + alpha / len(a) * b[start : start + len(wanted)] @ a
            off += float(np.square(rows - wanted).sum())
            size += float(np.square(wanted).sum())
        if not off <= 1e-4 * size:
            wrong.append(name)
    return wrong
