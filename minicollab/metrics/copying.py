"""What a conversation produced, where no rule finds it: the judge's model copies it out."""

from __future__ import annotations

import re

from minicollab import prompts
from minicollab.cast import Cast
from minicollab.engine.base import Prompt, Sampling
from minicollab.fit import fit
from minicollab.schema import Conversation, Cut
from minicollab.seeds import seed_of

_TOKENS = {"answer": 64, "code": 512}


async def copy_out(conversation: Conversation, what: str, cast: Cast) -> tuple[str | None, Cut]:
    """The assistant's final `what`, "answer" or "code"; and what the model was not shown (`fit`).

    A model that is asked for an answer may make one up: only what stands in a message of the
    assistant, whatever its spaces and line breaks, counts, and is given as it stands there.
    """
    engine = cast.judge.engine

    def show(shown: Conversation) -> Prompt:
        talk = prompts.transcript(shown, "User", "Assistant")
        return engine.chat(prompts.chat("extract", conversation=talk, what=what))

    prompt, cut = fit(engine, "judge", conversation, show, _TOKENS[what])
    sampling = Sampling(max_tokens=_TOKENS[what], seed=seed_of("extract"))
    words = (await engine.generate(prompt, sampling)).text.split()
    if not words or " ".join(words).strip(" .").lower() == "none":
        return None, cut
    # Not from the midst of a word or number: 5 is not what 15, 5.2 or 1/5 say.
    begin, end = r"(?<!\w)(?<!\d[./])" * _is_word(words[0][0]), r"(?!\w|[./]\d)" * _is_word(words[-1][-1])
    literal = re.compile(begin + r"\s+".join(map(re.escape, words)) + end)
    said = [message.content for message in conversation if message.role == "assistant"]
    return next((found[0] for text in reversed(said) if (found := literal.search(text))), None), cut


def _is_word(character: str) -> bool:
    return re.match(r"\w", character) is not None
