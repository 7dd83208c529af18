"""simulator-check: the figures by hand, the conversations with scripted engines, and once for real.

Scripted: the policy asks "For whom?"; the user of the first task tells all and ends, that of the
second offers help and ends, that of the third says nothing of use, to the policy as to the
interviewer. The judge says yes to what stands in `judges`.
"""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_pairs import cast, recipe

from minicollab.cli_simulator_check import simulator_check
from minicollab.engine.scripted import Request, ScriptedEngine
from minicollab.errors import RecipeError, StageError
from minicollab.schema import Conversation, Message, Rollout, Task
from minicollab.simulator_check import check_all
from minicollab.simulator_figures import SHARES, Answer, Checked, Turn, diversity, figures

TASK = Task("t", "a card please", ("it is for my uncle", "he turns sixty"))
TALK = Conversation((Message("user", TASK.opening), Message("assistant", "For whom?")))


def turn(rule: bool, judge: float, tokens: int = 4) -> Turn:
    return Turn("x", tokens, rule, judge)


def answer(tells: float, agrees: float | None = None, words: bool = False, text: str = "x") -> Answer:
    return Answer(text, tells, agrees, words)


def checked(
    turns: list[Turn],
    answers: list[Answer] | None = None,
    told: tuple[float, float] = (0.9, 0.9),
    done: bool = True,
) -> Checked:
    talk, interview = Rollout(TALK, 1, 0, "window"), Rollout(TALK, 1, 0, "user_done" if done else "window")
    return Checked("transcript", TASK, talk, interview, tuple(turns), tuple(answers or ()), (0.7, 0.2), told)


# The figures


def test_the_figures_worked_out_by_hand() -> None:
    """Two tasks, of 3 turns and 4 answers and of 1 and 1."""
    found = figures(
        [
            checked(
                [turn(True, 0.9), turn(True, 0.1), turn(False, 0.6, tokens=8)],
                [answer(0.1, words=True), answer(0.8, 0.3), answer(0.9, 0.3, True), answer(0.9, 0.9)],
            ),
            checked([turn(False, 0.5)], [answer(0.9, 0.8)], told=(0.9, 0.5), done=False),
            Checked("transcript", TASK, failure="the simulated user said nothing"),
        ],
        0,
        500,
    )
    values = {name: found[name]["value"] for name in SHARES}
    assert values == pytest.approx(
        {
            "drift_rule": 2 / 4,
            "drift_judge": 2 / 4,  # 0.9 and 0.6; 0.5 is not sure
            "drift_both": 1 / 4,
            "leak_judge": 2 / 4,
            "leak_words": 0,
            "faithful_judge": 2 / 4,
            "faithful": 3 / 4,
            "coverage": 3 / 4,
            "ended_covered": 1 / 2,
            "ended_before": 0,
            "never_ended": 1 / 2,
            "tokens": 20 / 4,
        }
    )
    assert (found["turns"], found["answers"], found["conversations"], found["failed"]) == (4, 5, 2, 1)
    assert all(found[name]["low"] <= values[name] <= found[name]["high"] for name in SHARES)


def test_an_early_end_is_one_before_all_was_told() -> None:
    early = figures([checked([], told=(0.9, 0.4))], 0, 100)
    ends = [early[name]["value"] for name in ("ended_covered", "ended_before", "never_ended")]
    assert ends == [0, 1, 0]
    assert early["drift_rule"] is None and early["faithful"] is None and early["distinct_1"] is None


def test_what_the_words_say_is_told_whatever_the_judge_says() -> None:
    said = checked([], [answer(0.9, 0.1, True, "for my uncle")], told=(0.2, 0.3))
    assert said.covered == [True, False] and said.ends(True, False) == (1, 1)


@pytest.mark.parametrize(
    "text", ["no, that\u2019s all", "that's it, thanks", "no", "No, thank you!", "I'm done"]
)
def test_who_says_that_it_is_over_has_ended(text: str) -> None:
    said = checked([], [answer(0.1, text=text)], done=False)
    assert said.ends(True, True) == (1, 1) and said.ends(False) == (0, 1)


@pytest.mark.parametrize("text", ["no, it is for my aunt", "no sugar", "all of it"])
def test_who_goes_on_has_not(text: str) -> None:
    assert checked([], [answer(0.1, text=text)], done=False).ends(False) == (1, 1)


def test_what_the_first_message_tells_by_words() -> None:
    open_task = Task("o", "a card for my uncle please", TASK.details)
    assert SHARES["leak_words"](Checked("chat", open_task)) == (1, 2)


def test_the_interval_is_the_95_percent_bootstrap_over_tasks() -> None:
    """One of two conversations has drifted in its only turn: resampled, the share is 0, 1/2 or 1."""
    pair = [checked([turn(True, 0)]), checked([turn(False, 0)])]
    found = figures(pair, 0, 2000)
    assert found["drift_rule"] == {"value": 0.5, "low": 0.0, "high": 1.0}
    assert found["tokens"] == {"value": 4.0, "low": 4.0, "high": 4.0}
    assert figures(pair, 0, 2000) == found


def test_a_task_without_turns_weighs_nothing() -> None:
    found = figures([checked([turn(True, 0)]), checked([])], 0, 500)
    assert found["drift_rule"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_diversity_by_hand() -> None:
    """Words: a b a | a b a | c; pairs: ab ba | ab ba."""
    assert diversity(["a b a", "A b, a!", "c"]) == {
        "distinct_1": 3 / 7,
        "distinct_2": 2 / 4,
        "repeated": pytest.approx(1 / 3),
    }
    assert set(diversity([]).values()) == {None}


# The conversations

TASKS = [
    Task("tells", "a card one please", ("it is for my uncle", "he turns sixty")),
    Task("helps", "a card two please", ("it is for my aunt",)),
    Task("idles", "a card three please", ("it is for my boss",)),
]


def user_says(request: Request) -> str:
    talk = request.prompt.rpartition("card ")[2]
    if talk.startswith("one"):
        return "[done]" if "uncle" in talk else "for my uncle, he turns sixty"
    if talk.startswith("two"):
        return "[done]" if "help" in talk else "How can I help you?"
    return "not right"


def judges(request: Request) -> list[float]:
    asked = request.prompt.rpartition("\n---\n")[2] or request.prompt
    asked = asked[asked.rindex("card ") :]
    said = asked.rpartition("\n\n")[0]
    yes = {
        "give help": "How can I help" in said,
        "wants help": "How can I help" not in said,
        "only a remark": "uncle" not in said,
        'say this: "it is for my uncle"': "for my uncle" in said,
        'say this: "he turns sixty"': "sixty" in said,
        "say this": False,
    }
    p = 0.9 if next(answer for question, answer in yes.items() if question in asked) else 0.2
    return [math.log(p), math.log(1 - p)]


def check(*styles: str, **sections: Any) -> list[Checked]:
    options = recipe(**sections)
    who = cast(options, policy=lambda _: "For whom?", user=user_says, judge=judges)
    return asyncio.run(check_all(options, who, styles or ("transcript",), TASKS))


def test_what_is_found_in_a_conversation() -> None:
    tells, helps, idles = check()
    assert tells.talk and tells.interview
    assert tells.talk.stop_reason == tells.interview.stop_reason == "user_done"
    text = "for my uncle, he turns sixty"
    assert tells.turns == (Turn(text, 6, False, pytest.approx((0.2 + 1 - 0.9) / 2)),)
    assert tells.answers == (Answer(text, pytest.approx(0.8), pytest.approx(0.9), True),)
    asked = [m.content for m in tells.interview.conversation if m.role == "assistant"]
    assert len(asked) == 2 and "What is it for" in asked[0] and "What else" in asked[1]
    assert tells.leaked == pytest.approx((0.2, 0.2)) and tells.told == pytest.approx((0.9, 0.9))
    assert [(t.rule, t.judge > 0.5) for t in helps.turns] == [(True, True)]
    assert [a.agrees for a in helps.answers] == [None]
    assert idles.talk and idles.interview and idles.interview.stop_reason == "window"
    assert [t.text for t in idles.turns] == ["not right"] * 2 and len(idles.talk.conversation) == 6
    assert len(idles.answers) == 4 and "is that all" in idles.interview.conversation.messages[-1].content
    found = figures([tells, helps, idles], 0, 100)
    ends = [found[name]["value"] for name in ("ended_covered", "ended_before", "never_ended")]
    assert ends == pytest.approx([1 / 3] * 3)
    assert found["drift_both"]["value"] == 1 / 4 and found["faithful"]["value"] == 1
    assert found["coverage"]["value"] == 2 / 4 and found["repeated"] == 1 / 4


def test_with_redraws_what_drifts_is_a_failure_that_is_counted() -> None:
    found = check(simulator={"redraws": 1})
    assert [bool(each.failure) for each in found] == [False, True, False]
    row = found[1].row()
    assert row["failure"].startswith("the simulated user fell out of its part") and row["talk"] is None
    assert figures(found, 0, 100)["failed"] == 1
    with pytest.raises(StageError, match=r"fell out of its part \(1\).*redraws"):
        figures(found[1:2], 0, 100)


def test_styles_are_played_beside_each_other_with_the_same_seeds() -> None:
    options = recipe()
    user = ScriptedEngine(user_says)
    who = cast(options, policy=lambda _: "For whom?", user=user, judge=judges)
    found = asyncio.run(check_all(options, who, ("transcript", "chat"), TASKS[:1]))
    assert [each.style for each in found] == ["transcript", "chat"]
    chat = [request for request in user.requests if request.prompt.startswith("<user>")]
    plain = [request for request in user.requests if request not in chat]
    assert len(chat) == len(plain) == 4  # told and done, to policy and interviewer
    assert [request.sampling for request in chat] == [request.sampling for request in plain]


def test_a_longer_eval_is_played_as_long() -> None:
    idles = check(eval={"exchanges": 5})[2]
    assert idles.talk and idles.talk.conversation.exchanges == 5


# The command


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINICOLLAB_CACHE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    rows = ({"id": t.id, "opening": t.opening, "details": t.details} for t in TASKS)
    (tmp_path / "tasks.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: small\nmodels: {policy: smollm2-135m-instruct}\ntasks: {path: tasks.jsonl}\n"
        "policy: {max_tokens: 24}\nengine: {context: 4096}\neval: {bootstrap: 200}\n"
        "reward: {weights: {goal_coverage: 1}}\n"
    )
    return path


def test_a_style_that_there_is_not(small: Path) -> None:
    result = CliRunner().invoke(simulator_check, [str(small), "--styles", "transcript,novel"])
    assert isinstance(result.exception, RecipeError) and "novel is no style" in str(result.exception)
    assert "yes-no" in str(result.exception)


@pytest.mark.slow
def test_for_real_and_nothing_is_computed_twice(small: Path) -> None:
    arguments = [str(small), "-n", "2", "--styles", "transcript,chat"]
    first, again = (CliRunner().invoke(simulator_check, [*arguments, "--json"]) for _ in range(2))
    assert (first.exit_code, again.exit_code) == (0, 0), (first.exception, again.exception)
    results = [json.loads(each.stdout) for each in (first, again)]
    costs = [result.pop("cost") for result in results]
    assert results[0] == results[1] and list(results[0]["styles"]) == ["transcript", "chat"]
    assert costs[0]["generated_tokens"] > 0 and costs[1]["generated_tokens"] == 0
    lines = Path("runs/small/simulator_check.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["task_id"] for line in lines] == ["helps", "helps", "idles", "idles"]
    told = CliRunner().invoke(simulator_check, arguments)
    assert "role drift, by rule" in told.stdout and "simulator_check.json" in told.stdout
