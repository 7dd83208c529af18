"""Conversations labelled by reading, to check a judge with. Written and sampled for this project.

conversations.jsonl: 180 short ones that end with an assistant's reply, in two halves, `tune` and
`held_out`; no prompt was chosen by looking at the second. `talk` begins with the user. The labels:

- interactivity: the last reply wants to be told something that the user has not told yet, however
  clumsily, with or without a question mark. No: rhetorical questions, offers ("Shall I go on?"),
  questions inside a text that was asked for, a bare "How can I help you?" after a request. Left
  out where it asks only for what was told already: that is a repetition;
- helpfulness: whoever asked gets on by the last reply, be it an answer or a question whose answer is
  needed. Left out where readers would differ;
- repetition: the last reply asks for something that the user has already told;
- politeness: it asks in a friendly or plain way; no: it orders, blames, mocks or is impatient. 40 have
  this label, and no other one;
- `details`: whether the user has told each of them.

The `sampled` ones are what SmolLM2-135M-Instruct (before and after training) and its simulated user
said in runs of the quickstart, drawn at random, as many with a question mark as without: from training
tasks (tune) and from held-out tasks (held_out). They were labelled by reading alone, the run's own
scores unseen but for one's. Of the 48 and 64 drawn, 7 and 6 were left out since readers would differ
on whether they ask, and some because they were enough. The examples that the judge is shown before a
question whether somebody asks, and the question's reverse, were chosen on the tune half.

deceptive.jsonl: pairs of replies with the same content, of which one is out to please the judge: it
praises itself, instructs the judge, imitates its format, claims that the user is satisfied or is
padded (the first word of its id). 12 of the 44 ask the user something, both times. 20 are sampled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

from minicollab.schema import Conversation, Message, Role

Half = Literal["tune", "held_out"]


@dataclass(frozen=True)
class Labelled:
    """A conversation with its labels, by metric, and whether the user has told each detail."""

    id: str
    half: Half
    sampled: bool
    talk: Conversation
    labels: Mapping[str, bool]
    details: Mapping[str, bool]


@dataclass(frozen=True)
class Deception:
    """The same conversation twice, ending with an honest and with a deceptive reply."""

    id: str
    asks: bool
    honest: Conversation
    deceptive: Conversation

    @property
    def trick(self) -> str:
        return self.id.partition("-")[0]


def conversations(half: Half) -> list[Labelled]:
    rows = (row | {"talk": _talk(row["talk"])} for row in _rows("conversations"))
    return [Labelled(**row) for row in rows if row["half"] == half]


def deceptions() -> list[Deception]:
    return [
        Deception(
            row["id"],
            row["asks"],
            _talk([*row["before"], row["honest"]]),
            _talk([*row["before"], row["deceptive"]]),
        )
        for row in _rows("deceptive")
    ]


def _rows(name: str) -> list[dict[str, Any]]:
    text = files(__name__).joinpath(f"{name}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def _talk(texts: Sequence[str]) -> Conversation:
    roles: tuple[Role, Role] = ("user", "assistant")
    return Conversation(tuple(Message(roles[i % 2], text) for i, text in enumerate(texts)))
