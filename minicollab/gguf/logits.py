"""Next-token logits of torch and of llama.cpp for the same tokens, and how far apart they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicollab.errors import ModelError, StageError
from minicollab.prompts import TEMPLATE
from minicollab.silence import no_bars

if TYPE_CHECKING:
    from minicollab.engine.context import Context
    from minicollab.engine.weights import Weights

_REPLY = 32  # tokens of a reply that are compared; for each a row over the vocabulary is kept


@dataclass(frozen=True)
class Talk:
    """A conversation as token ids: `prompt`, opened for the assistant, and the `reply` it gave.

    A model reads `read`; its logits at the last `len(reply)` positions say what it would have
    said in place of each token of the reply.
    """

    prompt: list[int]
    reply: list[int]

    @property
    def read(self) -> list[int]:
        return self.prompt + self.reply[:-1]


def tokenized(tokenizer: Any, messages: Sequence[dict[str, str]]) -> Talk:
    """Of messages whose last one is the assistant's: the chat template opened for it, and the
    first tokens of what it said."""
    *before, last = messages
    prompt = tokenizer.apply_chat_template(before, add_generation_prompt=True, return_dict=True, **TEMPLATE)
    return Talk(
        list(prompt["input_ids"]), tokenizer.encode(last["content"], add_special_tokens=False)[:_REPLY]
    )


def torch_logits(hf_base: Path, adapter_dir: Path, talks: Sequence[Talk], scale: float) -> tuple[Any, Any]:
    """With the adapter at that strength, and without; each (tokens of all replies, vocabulary)."""
    import numpy as np
    import torch

    with no_bars():
        from peft import PeftModel
        from peft.helpers import rescale_adapter_scale
        from transformers import AutoModelForCausalLM

        with _readable(hf_base):
            base = AutoModelForCausalLM.from_pretrained(hf_base, dtype=torch.float32)
        try:
            model = PeftModel.from_pretrained(base, adapter_dir).eval()
        except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            raise StageError(
                f"PEFT cannot put {adapter_dir} on {hf_base}: {error}"[:400],
                "Give the adapter as the trainer saved it, and the base that it was trained on.",
            ) from None

    def logits() -> Any:
        rows = (
            model(input_ids=torch.tensor([t.read]), logits_to_keep=len(t.reply)).logits[0].numpy()
            for t in talks
        )
        return np.concatenate(list(rows))

    with torch.no_grad():
        with rescale_adapter_scale(model, scale):
            adapted = logits()
        with model.disable_adapter():
            return adapted, logits()


def llama_logits(gguf: Path, talks: Sequence[Talk], adapter: Path | None = None) -> Any:
    """The same from llama.cpp, (tokens of all replies, vocabulary)."""
    import numpy as np

    rows, longest = [], max(len(t.read) for t in talks)
    with opened(gguf, adapter, longest, longest) as (_, context):
        for talk in talks:
            context.forget(0)
            context.batch.clear()
            context.batch.add(0, 0, np.array(talk.read, np.int32))
            for position in range(len(talk.prompt) - 1, len(talk.read)):
                context.batch.want(position)
            compute(context)
            rows.append(context.logits().copy())
    return np.concatenate(rows)


@contextmanager
def opened(
    gguf: Path, adapter: Path | None, cells: int, batch: int, sequences: int = 1
) -> Iterator[tuple[Weights, Context]]:
    """A GGUF in llama.cpp, freed at the end; on the CPU, to need no GPU memory."""
    from minicollab.engine.context import Context
    from minicollab.engine.sizing import Plan, cores
    from minicollab.engine.weights import Weights

    weights = Weights(gguf, gpu_layers=0)
    try:
        plan = Plan(cells, batch, longest=cells, flash=False, patience=None, line="")
        context = Context(weights, plan, sequences, cores(), adapter)
        try:
            yield weights, context
        finally:
            context.free()
    finally:
        weights.free()


def compute(context: Context) -> None:
    """Compute the context's batch. StageError if it has too few cells."""
    if not context.decode():
        raise StageError("the check needs more cells than its context has", "Free some memory.")


def mean_kl(p_logits: Any, q_logits: Any) -> float:
    """KL(p || q) in nats, the mean over the rows, from logits (rows, vocabulary)."""
    import numpy as np

    # A Hugging Face embedding may be padded to a round number of rows that no token uses.
    n = min(p_logits.shape[1], q_logits.shape[1])
    kls = []
    for p, q in zip(p_logits, q_logits, strict=True):  # in float64 a row at a time
        log_p, log_q = _log_softmax(p[:n]), _log_softmax(q[:n])
        kls.append(float((np.exp(log_p) * (log_p - log_q)).sum()))
    return float(np.mean(kls))


def perplexity(logits: Any, talks: Sequence[Talk]) -> float:
    """exp of the mean of -log p over the tokens of all replies, each given what stands before it:
    how surprised the model is by what the assistant said in these conversations. Of two files of
    the same model, the ratio is what the coarser weights cost."""
    import numpy as np

    said = [token for talk in talks for token in talk.reply]
    logs = [_log_softmax(row)[token] for row, token in zip(logits, said, strict=True)]
    return float(np.exp(-np.mean(logs)))


def _log_softmax(logits: Any) -> Any:
    import numpy as np

    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def load_tokenizer(hf_base: Path) -> Any:
    """Raises ModelError if it cannot be read or has no chat template."""
    from transformers import AutoTokenizer

    with _readable(hf_base):
        tokenizer: Any = AutoTokenizer.from_pretrained(hf_base)
    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer in {hf_base} has no chat template", "Train on an instruct (chat) model."
        )
    return tokenizer


@contextmanager
def _readable(hf_base: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise ModelError(
            f"the Hugging Face model in {hf_base} cannot be read: {error}"[:400], "Give another folder of it."
        ) from None
