"""What a chat app does with a GGUF: renders the template in it, tokenizes that, and reads on until
the model ends its turn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicollab.gguf.logits import compute, opened
from minicollab.prompts import TEMPLATE, as_trained

if TYPE_CHECKING:
    from minicollab.engine.weights import Weights

MOST = 200  # tokens of an answer that is waited for


def template_faults(gguf: Path, tokenizer: Any, chats: Sequence[Sequence[dict[str, str]]]) -> list[str]:
    """What an app would make of these chats otherwise than the tokenizer that was trained with.

    The template and the special tokens are the file's, as llama.cpp has read it, rendered by
    llama-cpp-python. Tokenized as llama.cpp's server does: a BOS that the template prints is
    taken off where the file says that one is added.
    """
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    with opened(gguf, None, cells=1, batch=1) as (weights, _):
        template = weights.template
        render = Jinja2ChatFormatter(template.source, eos_token=template.eos, bos_token=template.bos)
        told = TEMPLATE if template.source == as_trained(tokenizer.chat_template) else {}
        for chat in chats:
            theirs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False, **told)
            ours = render(messages=list(chat)).prompt
            if ours != theirs:
                return [f"tokenizer.chat_template: renders {_apart(ours, theirs)}"]
            ids = _app_tokens(weights, ours)
            bos = ids[:1] if template.add_bos else []
            if bos and ids[1:2] == bos:
                return ["tokenizer.ggml.add_bos_token: begins every conversation with two BOS"]
            wanted = tokenizer.encode(theirs, add_special_tokens=False)
            if ids not in (wanted, bos + wanted):
                return [f"tokenizer.ggml.tokens: {chat[-1]['content'][:30]!r} becomes other tokens in apps"]
    return []


def _app_tokens(weights: Weights, text: str) -> list[int]:
    if weights.bos and text.startswith(weights.bos):
        text = text[len(weights.bos) :]
    return weights.read(text, special=True, around=True)


def _apart(ours: str, theirs: str) -> str:
    """Where two texts begin to differ."""
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    at = min(len(ours), len(theirs)) if same is None else same
    return f"{ours[at : at + 30]!r} instead of {theirs[at : at + 30]!r} at character {at}"


def stopped(gguf: Path, prompts: Sequence[list[int]], adapter: Path | None = None) -> int:
    """How many of the prompts (token ids) the model answers, greedily, within `MOST` tokens: it ends
    its turn by itself. All are answered in one batch."""
    import numpy as np

    ended, tokens, alive = 0, {}, list(range(len(prompts)))
    lengths = [len(prompt) for prompt in prompts]
    cells, batch = sum(lengths) + MOST * len(prompts), max(*lengths, len(prompts))
    with opened(gguf, adapter, cells, batch, len(prompts)) as (weights, context):
        for i, prompt in enumerate(prompts):
            context.batch.clear()
            context.batch.add(i, 0, np.array(prompt, np.int32))
            context.batch.want(len(prompt) - 1)
            compute(context)
            tokens[i] = int(context.logits()[0].argmax())
        for _ in range(MOST):
            done = [i for i in alive if weights.ends(tokens[i])]
            ended += len(done)
            alive = [i for i in alive if i not in done]
            if not alive:
                break
            context.batch.clear()
            for i in alive:
                context.batch.want(context.batch.add(i, lengths[i], np.array([tokens[i]], np.int32)))
                lengths[i] += 1
            compute(context)
            tokens.update(zip(alive, context.logits().argmax(axis=1).tolist(), strict=True))
    return ended
