"""A talk with a model, turn by turn. The terminal is `cli_chat`'s."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol

from minicollab import exporting, recipe
from minicollab.engine.base import Completion, Engine, Hear, Prompt, Sampling
from minicollab.errors import MinicollabError, ModelError
from minicollab.fit import fit
from minicollab.models import describe, resolve
from minicollab.progress import Progress, silent
from minicollab.recipe import Generation
from minicollab.run import Run
from minicollab.running import run_together
from minicollab.schema import Conversation, Message
from minicollab.seeds import seed_of
from minicollab.terminal import printable


class Speaker(Engine, Protocol):
    """An engine that can be heard while it speaks, and whose adapter can be turned."""

    async def generate(self, prompt: Prompt, sampling: Sampling, hear: Hear | None = None) -> Completion: ...

    def set_strength(self, strength: float) -> None: ...


@dataclass(frozen=True)
class Reply:
    """`ended`: as a `Completion` does, or "stopped" by Ctrl-C. `left_out`: how many of the oldest
    messages the model was not shown, because its context is too small."""

    text: str
    ended: Literal["end", "stop", "length", "stopped"]
    left_out: int


class Chat:
    """`talk` is what was said, `system` what the model is told before it, `strength` how much the
    adapter counts: 0 the base, 1 as trained; None where there is no adapter."""

    def __init__(self, engine: Speaker, options: Generation, seed: int, adapted: bool):
        self.engine, self.talk, self.system = engine, Conversation(), ""
        self.strength: float | None = 1.0 if adapted else None
        tokens = min(options.max_tokens, engine.context // 2)
        self.options = options.model_copy(update={"max_tokens": tokens})
        self._seed, self._attempt = seed, 0
        self._unanswered: Conversation | None = None

    def ask(self, text: str, hear: Hear) -> Reply:
        """The answer to `text`; both become part of the talk. What was said before Ctrl-C is one,
        too; if that is nothing, or there is an error, `text` was not said either."""
        return self._answer(self.talk + Message("user", text), 0, hear)

    def regenerate(self, hear: Hear) -> Reply:
        """Another answer to the last question, in place of the one that was given."""
        return self._answer(self._asked(), self._attempt + 1, hear)

    def compare(self, question: str, hear: Callable[[str, str], None]) -> bool:
        """`hear` what "base" and "trained" answer to `question`, or to the last one if it is "". The
        talk stays as it is. False if Ctrl-C ended it."""
        strength = self.needs_adapter()
        talk = self.talk + Message("user", question) if question else self._asked()
        try:
            for name, counts in (("base", 0.0), ("trained", strength or 1.0)):
                self.engine.set_strength(counts)
                if self._generate(talk, 0, partial(hear, name)).ended == "stopped":
                    return False
        finally:
            self.engine.set_strength(strength)
        return True

    def turn(self, strength: float) -> None:
        """Let the adapter count so much from now on."""
        self.needs_adapter()
        self.engine.set_strength(strength)
        self.strength = strength

    def tell(self, system: str) -> None:
        """Change the system message. ModelError if the model's template takes none."""
        if system:
            self.engine.chat([Message("system", system), Message("user", "Hello")])
        self.system = system

    def needs_adapter(self) -> float:
        """The adapter's strength. ModelError if there is none."""
        if self.strength is None:
            raise ModelError(
                "that needs an adapter",
                "Start again with a run folder, or with MODEL.gguf --adapter ADAPTER.",
            )
        return self.strength

    def _asked(self) -> Conversation:
        """The talk up to the last question, which may have had no answer."""
        if (asked := self._unanswered) and asked.messages[:-1] == self.talk.messages:
            return asked
        questions = [i for i, message in enumerate(self.talk) if message.role == "user"]
        if not questions:
            raise MinicollabError("nothing was asked yet", "Ask something first.")
        return Conversation(self.talk.messages[: questions[-1] + 1])

    def _answer(self, talk: Conversation, attempt: int, hear: Hear) -> Reply:
        self._attempt = attempt
        reply = self._generate(talk, attempt, hear)
        if reply.text:
            self.talk = talk + Message("assistant", reply.text)
        self._unanswered = None if reply.text or reply.ended == "stopped" else talk
        return reply

    def _generate(self, talk: Conversation, attempt: int, hear: Hear) -> Reply:
        sampling = Sampling.of(self.options, seed_of(self._seed, len(talk), attempt))
        prompt, left_out = self._prompt(talk)
        said = ""

        def note(text: str) -> None:
            nonlocal said
            said = text
            hear(printable(text, whole=False))

        try:
            answer = run_together(self.engine.generate(prompt, sampling, note))
        except KeyboardInterrupt:
            return Reply(printable(said).strip(), "stopped", left_out)
        hear(printable(answer.text))
        return Reply(printable(answer.text).strip(), answer.stop_reason, left_out)

    def _prompt(self, talk: Conversation) -> tuple[Prompt, int]:
        system = (Message("system", self.system),) if self.system else ()

        def show(shown: Conversation) -> Prompt:
            return self.engine.chat((*system, *shown))

        try:
            prompt, cut = fit(self.engine, "model", talk, show, self.options.max_tokens)
        except ModelError as error:
            if self.engine.length(show(talk)) + self.options.max_tokens <= self.engine.context:
                raise  # not for want of room
            raise ModelError(error.what, "Say it in fewer words, or start with a larger --context.") from None
        return prompt, cut["model"]


def open_chat(
    named: str,
    adapter: Path | None = None,
    given: dict[str, Any] | None = None,
    seed: int = 0,
    context: int | None = None,
    progress: Progress = silent,
) -> Chat:
    """A chat with the run in the folder `named` (the policy's GGUF and what was exported), or with a
    model: a GGUF's path or the name of one. `adapter` is a LoRA GGUF, or PEFT's folder, to be used
    instead. What is `given` of `Generation` goes before what the recipe says.

    MinicollabError if one of them is not there, or does not fit.
    """
    from minicollab.engine.llama import LlamaEngine

    if Path(named).is_dir():
        run = Run.at(Path(named))
        gguf = resolve(run.recipe.models.policy, run.folder, progress)
        adapter = adapter or exporting.adapter(run)
        options, machine = run.recipe.policy, run.recipe.engine
    else:
        gguf, options, machine = resolve(named, Path.cwd(), progress), Generation(), recipe.Engine()
    machine = machine.model_copy(update={"context": context, "sequences": 1, "deterministic": False})
    with TemporaryDirectory(prefix="minicollab-") as folder:
        if adapter:
            adapter = _as_gguf(adapter, gguf, Path(folder))
        engine = LlamaEngine(gguf, gguf.stem, machine, adapter)
    return Chat(engine, options.model_copy(update=given or {}), seed, adapter is not None)


def _as_gguf(adapter: Path, base: Path, folder: Path) -> Path:
    if adapter.is_dir():
        from minicollab.gguf.adapter import adapter_to_gguf

        return adapter_to_gguf(adapter, base, folder / "adapter.gguf")
    describe(adapter)  # raises if it is no GGUF
    return adapter
