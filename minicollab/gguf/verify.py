"""Does the exported file say what the trained model says? Measured, not assumed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minicollab.engine.context import set_adapter
from minicollab.engine.quiet import last_error, quiet
from minicollab.errors import ModelError, StageError
from minicollab.gguf.files import read_gguf, value
from minicollab.progress import Progress, silent
from minicollab.silence import no_bars

MIN_LOGIT_CHANGE = 1e-3
MAX_KL = 0.01
MAX_KL_SHARE = 0.1  # of the adapter's own effect: a slight adapter merged wrongly stays below MAX_KL
KL_NOISE = 3e-4  # no bound goes below it: float16 costs 1e-5 (135M and 1.5B), a bfloat16 base 6e-5
_EOS = "tokenizer.ggml.eos_token_id"
_TEMPLATE = "tokenizer.chat_template"


def verify(
    base_gguf: Path,
    adapter_gguf: Path,
    merged_f16: Path,
    final_gguf: Path,
    hf_base: Path,
    adapter_dir: Path,
    prompts: Sequence[list[dict[str, str]]],
    progress: Progress = silent,
) -> dict[str, Any]:
    """Compare torch (float32 base + PEFT adapter) with what llama.cpp makes of the files.

    `prompts` are chats; both sides read the same token ids, those of the Hugging Face
    tokenizer's chat template. The figures are KL(torch || llama.cpp) in nats of the next-token
    distribution after the prompt, averaged over the prompts. `ok` means that the adapter moves
    llama.cpp's logits, that the F16 merge agrees with torch (and far better than the base does,
    whose distance is `kl_torch_base`), and that tokenizer, chat template and end-of-sequence
    token are the base's; `failures` names whatever does not hold. The loss by quantization is
    reported, not judged: that is the user's choice.
    """
    import numpy as np

    total = 5  # runs of a model over all prompts

    def llama(done: int, gguf: Path, adapter: Path | None = None) -> Any:
        progress("verify", done, total)
        return _llama_logits(gguf, ids, adapter)

    progress("verify", 0, total)
    ids = _token_ids(hf_base, prompts)
    torch_logits, torch_base = _torch_logits(hf_base, adapter_dir, ids)
    bare, adapted = llama(1, base_gguf), llama(2, base_gguf, adapter_gguf)
    result: dict[str, Any] = {
        "adapter_max_logit_change": float(np.abs(adapted - bare).max()),
        "kl_torch_base": _mean_kl(torch_logits, torch_base),
        "kl_torch_merged_f16": _mean_kl(torch_logits, llama(3, merged_f16)),
        "kl_torch_adapter_on_base": _mean_kl(torch_logits, adapted),
        "kl_quantized": _mean_kl(torch_logits, llama(4, final_gguf)),
        "prompts": len(prompts),
    }
    differing = _differing_keys(base_gguf, final_gguf)
    result["chat_template"] = _TEMPLATE not in differing
    result["eos"] = _EOS not in differing
    result["failures"] = _failures(result, differing)
    result["ok"] = not result["failures"]
    progress("verify", total, total)
    return result


def _failures(result: dict[str, Any], differing: dict[str, str]) -> list[str]:
    failures = []
    # Written so that NaN fails.
    change, kl = result["adapter_max_logit_change"], result["kl_torch_merged_f16"]
    if not change > MIN_LOGIT_CHANGE:
        failures.append(
            f"the adapter changes no logit by more than {change:.2g} (at least {MIN_LOGIT_CHANGE})"
        )
    limit = min(MAX_KL, max(KL_NOISE, MAX_KL_SHARE * result["kl_torch_base"]))
    if not kl < limit:
        failures.append(f"the F16 merge differs from torch by a KL of {kl:.3g} (below {limit:.3g})")
    return failures + [f"{key}: {how}" for key, how in differing.items()]


def _differing_keys(base_gguf: Path, final_gguf: Path) -> dict[str, str]:
    """Tokenizer keys that the final file does not have as the base has them, and how they differ."""
    base, final = read_gguf(base_gguf), read_gguf(final_gguf)
    keys = [k for k, field in base.fields.items() if k.startswith("tokenizer.") and len(field.data)]
    differing = {}
    for key in dict.fromkeys([*keys, _TEMPLATE, _EOS]):
        wanted, found = value(base, key), value(final, key)
        if wanted is None:
            differing[key] = "the base has none"
        elif found is None:
            differing[key] = "missing in the exported file"
        elif found != wanted:
            differing[key] = f"{str(found)[:40]!r} instead of {str(wanted)[:40]!r}"
    return differing


def _mean_kl(p_logits: Any, q_logits: Any) -> float:
    """Mean over the rows of KL(p || q), from logits (prompts, vocabulary)."""
    import numpy as np

    # A Hugging Face embedding may be padded to a round number of rows that no token uses.
    n = min(p_logits.shape[1], q_logits.shape[1])
    log_p, log_q = (_log_softmax(x[:, :n].astype(np.float64)) for x in (p_logits, q_logits))
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


def _log_softmax(logits: Any) -> Any:
    import numpy as np

    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _token_ids(hf_base: Path, prompts: Sequence[list[dict[str, str]]]) -> list[list[int]]:
    from transformers import AutoTokenizer

    if not prompts:
        raise StageError("there is no prompt to verify the export on", "Give the recipe at least one task.")
    tokenizer: Any = AutoTokenizer.from_pretrained(hf_base)
    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer in {hf_base} has no chat template", "Train on an instruct (chat) model."
        )
    return [
        tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=True)["input_ids"]
        for p in prompts
    ]


def _torch_logits(hf_base: Path, adapter_dir: Path, ids: list[list[int]]) -> tuple[Any, Any]:
    """Next-token logits with and without the adapter, each (prompts, vocabulary)."""
    import numpy as np
    import torch

    with no_bars():
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(hf_base, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, adapter_dir).eval()

    def logits() -> Any:
        return np.stack(
            [model(input_ids=torch.tensor([i]), logits_to_keep=1).logits[0, -1].numpy() for i in ids]
        )

    with torch.no_grad():
        adapted = logits()
        with model.disable_adapter():
            return adapted, logits()


def _llama_logits(gguf: Path, ids: list[list[int]], adapter: Path | None) -> Any:
    """Next-token logits from llama.cpp, (prompts, vocabulary); on the CPU, to need no GPU memory."""
    import llama_cpp as lc
    import numpy as np

    quiet()
    lc.llama_backend_init()
    model_params = lc.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = lc.llama_model_load_from_file(str(gguf).encode(), model_params)
    if not model:
        raise StageError(f"llama.cpp cannot load {gguf.name}: {last_error()}", "Run the export stage again.")
    params = lc.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = max(map(len, ids))
    context = lc.llama_init_from_model(model, params)
    if not context:
        raise StageError(
            f"llama.cpp cannot make a context for {gguf.name}: {last_error()}", "Free some memory."
        )
    try:
        if adapter:
            set_adapter(model, context, adapter)
        return np.stack([_next_token_logits(model, context, row) for row in ids])
    finally:
        lc.llama_free(context)
        lc.llama_model_free(model)


def _next_token_logits(model: Any, context: Any, ids: list[int]) -> Any:
    import llama_cpp as lc
    import numpy as np

    lc.llama_memory_clear(lc.llama_get_memory(context), True)
    tokens = (lc.llama_token * len(ids))(*ids)
    status = lc.llama_decode(context, lc.llama_batch_get_one(tokens, len(ids)))
    if status != 0:
        raise StageError(
            f"llama_decode failed with status {status}: {last_error()}", "Run the export stage again."
        )
    n_vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
    return np.ctypeslib.as_array(lc.llama_get_logits_ith(context, -1), (n_vocab,)).copy()
