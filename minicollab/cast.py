"""Who takes part in a simulated conversation: policy, simulator and judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from minicollab import prompts
from minicollab.engine.base import Completion, Engine, Sampling
from minicollab.judge import Judge
from minicollab.recipe import Generation
from minicollab.schema import Conversation, Message
from minicollab.simulator import Simulator


@dataclass(frozen=True)
class Policy:
    """The assistant. `proactive_system` puts the system prompt that asks for questions first."""

    engine: Engine
    options: Generation
    proactive_system: bool = False

    async def reply(self, talk: Conversation, seed: int) -> Completion:
        """An answer as the policy would give it, in its own chat template."""
        return await self._generate(talk, seed, self.proactive_system)

    async def proactive_reply(self, talk: Conversation, seed: int, style: str) -> Completion:
        """An answer that was asked to find out more: by system prompt, or as the next line of a
        few-shot transcript, which models too small to follow a system prompt can continue."""
        if style == "system":
            return await self._generate(talk, seed, proactive=True)
        conversation = prompts.transcript(talk, "Human", "AI")
        prompt = self.engine.plain(prompts.fill("proactive_transcript", conversation=conversation))
        return await self.engine.generate(prompt, self._sampling(seed, ("\n", "Human:")))

    async def _generate(self, talk: Conversation, seed: int, proactive: bool) -> Completion:
        system = (Message("system", prompts.load("proactive_system")),) if proactive else ()
        return await self.engine.generate(self.engine.chat((*system, *talk)), self._sampling(seed))

    def _sampling(self, seed: int, stop: tuple[str, ...] = ()) -> Sampling:
        return Sampling.of(self.options, seed, stop)


@dataclass(frozen=True)
class Cast:
    policy: Policy
    simulator: Simulator
    judge: Judge


@dataclass(frozen=True)
class Measured:
    """A metric's value and the judge's answers behind it, by question."""

    value: float
    judgements: Mapping[str, tuple[float, ...]]
