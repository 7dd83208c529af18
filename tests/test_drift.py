"""Which turns of a user read like the assistant's: on turns that models really wrote, and on what
people really ask."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minicollab.drift import assistant_like, invents, ngrams, overlap, tells, words
from minicollab.recipe import Tasks
from minicollab.schema import Conversation, Message, Task
from minicollab.tasks import load_tasks

TASK = Task("t", "a card please", ("it is for my uncle Piet", "keep it under 40 words"))


def asked(reply: str, task: Task = TASK) -> Conversation:
    return Conversation((Message("user", task.opening), Message("assistant", reply)))


def test_real_turns_read_and_labelled(repo: Path) -> None:
    """Turns that Qwen2.5-Coder-1.5B and SmolLM2-135M wrote as the user of the quickstart's tasks, half
    of them out of their part. The rules were written with these in view: recall is not to be read as
    what it is on others'."""
    tasks = {task.id: task for task in load_tasks(Tasks(path=str(repo / "recipes/quickstart/tasks.jsonl")))}
    lines = (repo / "tests/data/user_turns.jsonl").read_text("utf-8").splitlines()
    turns = [json.loads(line) for line in lines]
    assert len(turns) >= 60 and sum(turn["drifted"] for turn in turns) * 2 == len(turns)
    found = [t for t in turns if assistant_like(t["text"], tasks[t["task_id"]], asked(t["reply"]))]
    assert [turn["text"] for turn in found if not turn["drifted"]] == []
    assert len(found) / sum(turn["drifted"] for turn in turns) >= 0.6


@pytest.mark.parametrize(
    ("family", "file"),
    [("in3", "in3_train"), ("math", "math_test_level5_200"), ("document", "documents_120")],
)
def test_what_people_ask_for_is_a_user_s(repo: Path, family: str, file: str) -> None:
    path = repo.parent / f"shared/data/{file}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{file} is not beside this checkout")
    tasks = load_tasks(Tasks(family=family, path=str(path)))[:200]  # type: ignore[arg-type]
    texts = [(text, task) for task in tasks for text in (task.opening, *task.details)]
    taken = [text for text, task in texts if assistant_like(text, task, asked("What do you need?", task))]
    assert len(texts) > 300 and len(taken) / len(texts) < 0.005, taken


@pytest.mark.parametrize(
    "text",
    [
        "How can I help you today?",
        "I\u2019d be happy to help you with the card!",
        "Sure! Here is a card for your uncle.",
        "Here's a short poem: roses are red",
        "let me know if you need anything else",
        "As an AI, I have no uncle",
        "could you please provide more details about your uncle",
        "what would you like to say?",
        "1. Buy paper 2. Fold it 3. Write on it",
        "```python print('happy birthday')```",
        "Dear Uncle, happy birthday, yours [your name]",
        "word " * 61,
    ],
)
def test_what_assistants_say(text: str) -> None:
    assert assistant_like(text, TASK, asked("Tell me about it."))


@pytest.mark.parametrize(
    "text",
    [
        "sure, it is for my uncle",
        "what would you recommend?",
        "you can mention the boat, and make it funny",
        "here is the problem with it: too long",
        "could you help me with the last line",
        "no problem, take your time",
        "ok",
        "",
    ],
)
def test_what_users_say(text: str) -> None:
    assert not assistant_like(text, TASK, asked("Tell me about it."))


def test_repeating_the_assistant_is_drift_but_not_what_the_user_knows() -> None:
    reply = "A card for your uncle is a lovely idea, and it will make his day."
    assert assistant_like("a card for your uncle is a lovely idea", TASK, asked(reply))
    assert not assistant_like("a lovely idea", TASK, asked(reply))  # too short to tell
    said = "So it is for my uncle Piet?"
    assert not assistant_like("it is for my uncle Piet", TASK, asked(said))
    again = asked("Hm, the boat is blue and the sail is white.")
    told = Conversation((*again, Message("user", "the boat is blue and the sail is white")))
    once_more = told + Message("assistant", "The boat is blue and the sail is white!")
    assert not assistant_like("the boat is blue and the sail is white", TASK, once_more)


def test_work_that_the_task_itself_holds_is_the_user_s() -> None:
    listed = "1. a lamp 2. a chair 3. a very old table"
    assert assistant_like(listed, TASK, asked("What?"))
    assert not assistant_like(listed, Task("t", "sort it", (listed,)), asked("What?"))


def test_overlap_by_hand() -> None:
    """T = abc bcd cde def; abc and bcd stand in the source."""
    assert overlap("a b c d e f", ["x a b c d"]) == 2 / 4
    assert overlap("a b c d e f", ["x a b c d"], ["A, b c!"]) == 1 / 3
    assert overlap("a b c d", ["a b c d"]) == 0  # two trigrams
    assert overlap("a b c d e", []) == 0 and overlap("", ["a b c"]) == 0


def test_words_and_runs_of_them() -> None:
    assert words("It\u2019s 5, OK?") == ["it's", "5", "ok"]
    assert ngrams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")] and ngrams(["a"], 2) == []


def test_a_detail_is_told_by_half_of_its_words() -> None:
    detail = "my boss Ingrid retires after thirty years"  # six that carry meaning: boss … years, after
    assert tells("Ingrid, my boss, retired", detail)
    assert not tells("for my boss, she has thirty", detail)
    assert not tells("it is for me", "it is for my") and not tells("", detail)


@pytest.mark.parametrize(
    ("text", "made_up"),
    [
        ("you can use chocolate chips, sugar, and eggs", True),
        ("a team meeting, to discuss work, to plan projects", True),
        ("yes, the barn is located in a mountainous area, and guests will be walking to it", True),
        ("it's for my uncle Piet, he sails, keep it under 40 words", False),
        ("that sounds interesting, but not exactly what I'm looking for", False),
        ("I'm sorry, I don't understand what you're asking", False),
        ("I don't know, that doesn't help me much", False),
        ("hmm, that's too stiff and too long", False),
        ("the lighthouse with the red roof and the keeper", False),  # the assistant has said so
        ("", False),
    ],
)
def test_what_is_made_up(text: str, made_up: bool) -> None:
    talk = asked("Do you want a lighthouse on it, with a red roof and a keeper?")
    assert invents(text, TASK, talk) == made_up


def test_real_answers_read_and_labelled(repo: Path) -> None:
    """As above. The rule is made to find the worst, not to accuse who says it in other words."""
    tasks = {task.id: task for task in load_tasks(Tasks(path=str(repo / "recipes/quickstart/tasks.jsonl")))}
    lines = (repo / "tests/data/user_facts.jsonl").read_text("utf-8").splitlines()
    turns = [(json.loads(line), tasks[json.loads(line)["task_id"]]) for line in lines]
    taken = [turn for turn, task in turns if invents(turn["text"], task, asked(turn["reply"], task))]
    assert sum(turn["agrees"] or not turn["tells"] for turn in taken) <= 1
    assert sum(turn["tells"] and not turn["agrees"] for turn in taken) >= 6  # of 12
