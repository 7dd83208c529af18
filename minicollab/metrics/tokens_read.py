"""What the person had to read."""

from __future__ import annotations

from minicollab.cast import Cast, Measured
from minicollab.schema import Rollout, Task


async def measure(rollout: Rollout, task: Task, cast: Cast) -> Measured:
    """Tokens of all the assistant's messages, by the policy's tokenizer."""
    replies = (m.content for m in rollout.conversation if m.role == "assistant")
    return Measured(float(sum(cast.policy.engine.count(text) for text in replies)), {})
