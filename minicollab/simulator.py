"""Plays the user: the next message, or the end of the conversation (paper, section 3.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from minicollab import personas, prompts
from minicollab.drift import assistant_like, invents
from minicollab.engine.base import Engine, Prompt, Sampling, choose
from minicollab.extraction import names
from minicollab.failures import Failure
from minicollab.fit import fit
from minicollab.recipe import Simulator as Options
from minicollab.schema import Conversation, Cut, Message, Task
from minicollab.seeds import seed_of

_DONE = re.compile(r"\[done\]|^\W*done\W*$", re.IGNORECASE)  # small models forget the brackets
_TRIES = 4


@dataclass(frozen=True)
class Simulator:
    """`seed` is the run's: personas are drawn from it."""

    engine: Engine
    options: Options
    seed: int = 0

    def open(self, task: Task) -> Message:
        """The vague request that the task begins with."""
        return Message("user", task.opening)

    async def next(self, task: Task, talk: Conversation, seed: int) -> tuple[Message | None, Cut]:
        """What the user says after the assistant's last message; None when they are done. And what
        had to be cut from the conversation to fit the context (`fit`).

        An empty answer is drawn again with another seed, and so is the end while the user has
        told nothing but the opening. The last try counts; Failure if it is empty. A turn that reads
        like an assistant's or makes things up is drawn again `redraws` times, if the recipe says so;
        then Failure. A persona that has lost patience is done.
        """
        if self.options.style == "yes-no":
            return await self._answer(task, talk.messages[-1].content), Cut()
        persona = self.persona(task)
        if persona and persona.gives_up(task, talk):
            return None, Cut()
        answer = self.options.generation.max_tokens
        prompt, cut = fit(self.engine, "simulator", talk, lambda shown: self.prompt(task, shown), answer)
        told = sum(message.role == "user" for message in talk) > 1
        redraws = self.options.redraws
        for redraw in range(redraws + 1):
            text = await self._draw(prompt, told, seed_of(seed, "redraw", redraw) if redraw else seed)
            if text is None:
                return None, cut
            if not redraws or not (assistant_like(text, task, talk) or invents(text, task, talk)):
                return Message("user", persona.misspell(text, task, seed) if persona else text), cut
        raise Failure(f"the simulated user fell out of its part: {text!r}")

    async def likelihoods(
        self, task: Task, talk: Conversation, texts: Sequence[str]
    ) -> tuple[list[float], Cut]:
        """Natural-log probability of each text as the user's next message, and what had to be cut."""
        said = [f" {prompts.one_line(text)}" for text in texts]
        longest = max(self.engine.count(text) for text in said)
        prompt, cut = fit(self.engine, "simulator", talk, lambda shown: self.prompt(task, shown), longest)
        return await self.engine.score(prompt, said), cut

    def prompt(self, task: Task, talk: Conversation) -> Prompt:
        """What the model that plays the user is shown."""
        details = [prompts.one_line(d) for d in task.details]
        plain = self.options.style == "transcript"
        values = {
            "details": "; ".join(details) if plain else "\n".join(f"- {d}" for d in details),
            "conversation": prompts.transcript(talk, "Human", "AI"),
        }
        name = f"simulator_{self.options.style}"
        if persona := self.persona(task):
            name, values = f"{name}_persona", values | {"persona": str(persona)}
        text = prompts.fill(name, **values)
        return self.engine.plain(text) if plain else self.engine.chat([Message("user", text)])

    def persona(self, task: Task) -> personas.Persona | None:
        """Who the user is, where the recipe asks for it."""
        return personas.draw(self.seed, task) if self.options.personas else None

    async def _draw(self, prompt: Prompt, told: bool, seed: int) -> str | None:
        for attempt in range(_TRIES):
            text = await self._say(prompt, seed_of(seed, attempt))
            ends = _DONE.search(text)
            if text and not ends:
                return text
            if ends and (told or attempt == _TRIES - 1):
                return None
        raise Failure("the simulated user said nothing")

    async def _say(self, prompt: Prompt, seed: int) -> str:
        sampling = Sampling.of(self.options.generation, seed, stop=("\n", "AI:", "Human:"))
        return prompts.one_line((await self.engine.generate(prompt, sampling)).text)

    async def _answer(self, task: Task, said: str) -> Message | None:
        """Yes or no about the task's first detail; None when the assistant has named it."""
        if names(said, task):
            return None
        if "?" not in said:
            return Message("user", "Please ask me a question that I can answer with yes or no.")
        shown = prompts.chat("simulator_yes_no", thing=task.details[0], question=prompts.one_line(said))
        yes, no = await choose(self.engine, self.engine.chat(shown), ("Yes", "No"))
        return Message("user", "Yes." if yes > no else "No.")
