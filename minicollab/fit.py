"""A conversation that is too long for a request is cut, by one policy, and never silently.

The oldest exchanges go first, an exchange being a user message with what answers it. Kept always:
system messages, the last user message, and what follows that. Nothing is cut inside a message.
How many messages were left out goes, as `Cut`, into the rollout.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from minicollab.engine.base import Engine, Prompt
from minicollab.errors import ModelError
from minicollab.schema import Conversation, Cut


def fit(
    engine: Engine, role: str, talk: Conversation, show: Callable[[Conversation], Prompt], answer: int
) -> tuple[Prompt, Cut]:
    """The prompt that `show` makes of as much of `talk` as leaves `answer` tokens of the engine's
    context for the answer of `role`; and how many messages were left out of it.

    ModelError if not even what is always kept leaves them.
    """
    prompt = show(talk)
    if engine.length(prompt) + answer <= engine.context:  # as most do
        return prompt, Cut()

    def needed(start: int) -> int:
        return engine.length(show(_since(talk, start))) + answer

    users = [i for i, message in enumerate(talk) if message.role == "user"]
    starts = users[1:] or [0]
    at = bisect_left(starts, True, key=lambda start: needed(start) <= engine.context)
    if at == len(starts):
        raise ModelError(
            f"the {role} needs {needed(starts[-1])} tokens, {answer} of them for the answer, even if shown "
            f"the last exchange only; the context has {engine.context}",
            "Raise engine.context (for a server: remote.context), or lower max_tokens, in the recipe.",
        )
    shown = _since(talk, starts[at])
    return show(shown), Cut({role: len(talk) - len(shown)})


def _since(talk: Conversation, start: int) -> Conversation:
    """From message `start` on, and the system messages before it."""
    return Conversation(tuple(m for i, m in enumerate(talk) if i >= start or m.role == "system"))
