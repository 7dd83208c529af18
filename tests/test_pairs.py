"""The main loop against values worked out by hand. Policy, simulated user and judge are scripted:

- the policy says BAD when asked plainly and GOOD when asked to be proactive;
- the user tells "zebra" after GOOD and nothing after BAD;
- the judge finds a reply interactive with 0.8 if it is GOOD, else 0.2, and a detail said with
  0.9 if it was, else with 0.1.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from minicollab.cache.engine import CachedEngine
from minicollab.cache.store import Store
from minicollab.cast import Cast, Policy
from minicollab.engine.base import Completion, Prompt, Sampling
from minicollab.engine.scripted import Request, ScriptedEngine
from minicollab.errors import ModelError, RecipeError
from minicollab.judge import Judge
from minicollab.loading import load_recipe
from minicollab.pairs import Turn, best_against_worst, build_pairs, converse, converse_all, weigh
from minicollab.recipe import Pairs, Recipe, Reward
from minicollab.rollout import mr, propose, score_candidates
from minicollab.schema import Candidate, Conversation, Message, PreferencePair, Task
from minicollab.simulator import Simulator
from minicollab.tasks import split

TASK = Task("t", "make a card", ("it has a zebra", "it has a walrus"))
OPENED = Conversation((Message("user", "make a card"),))
BAD, GOOD = "BAD a b c", "GOOD what?"


def recipe(**sections: Any) -> Recipe:
    """2 candidates, 2 futures of 1 exchange, 2 turns; every section can be given anew."""
    given: dict[str, Any] = {
        "name": "t",
        "models": {"policy": "p"},
        "tasks": {"path": "t.jsonl"},
        "propose": {"candidates": 2, "proactive_ratio": 0.5},
        "simulate": {"exchanges": 2, "futures": 2, "window": 1},
        "judge": {"questions": {"asks": {"ask": "INTERACTIVE", "scope": "reply"}}},
        "reward": {"token_cost": 0.01},
    }
    return Recipe.model_validate(given | sections)


def after_last(text: str, *marks: str) -> str:
    return max(marks, key=text.rfind)


def says(request: Request) -> str:
    chat = request.prompt.startswith(("<user>", "<system>"))
    return BAD if chat else GOOD


def user_says(request: Request) -> str:
    return "zebra" if after_last(request.prompt, "GOOD", "BAD") == "GOOD" else "hm"


def judges(request: Request) -> list[float]:
    if "INTERACTIVE" in request.prompt:
        yes = 0.8 if after_last(request.prompt, "GOOD", "BAD") == "GOOD" else 0.2
    else:
        yes = 0.9 if "User: zebra" in request.prompt and "it has a zebra" in request.prompt else 0.1
    return [math.log(yes), math.log(1 - yes)]


def cast(
    options: Recipe, policy: Any = says, user: Any = user_says, judge: Any = judges, verdict: Any = ()
) -> Cast:
    """Each role is an engine, or the script of one."""

    def engine(role: Any, *scripts: Any) -> Any:
        return role if isinstance(role, CachedEngine | ScriptedEngine) else ScriptedEngine(*scripts)

    return Cast(
        Policy(engine(policy, policy), options.policy),
        Simulator(engine(user, user), options.simulator),
        Judge(engine(judge, verdict, judge), options.judge),
    )


def talk_through(options: Recipe, who: Cast) -> list[Turn]:
    return asyncio.run(converse(options, who, TASK))


def pairs_of(turns: list[Turn], options: Recipe) -> list[PreferencePair]:
    return build_pairs([row for turn in turns for row in turn.rows()], options.pairs)


# MR by hand; a token is a word here (BAD 4, GOOD 2), lambda 0.01.
#   turn 0, BAD:  [BAD, hm, BAD]                 goal (0.1 + 0.1) / 2, asks (0.2 + 0.2) / 2, 8 tokens
#   turn 0, GOOD: [GOOD, zebra, BAD]             goal (0.9 + 0.1) / 2, asks (0.8 + 0.2) / 2, 6 tokens
#   turn 1, BAD:  [GOOD, zebra | BAD, hm, BAD]   goal 0.5, asks 0.2, 10 tokens
#   turn 1, GOOD: [GOOD, zebra | GOOD, zebra, BAD]   goal 0.5, asks 0.5, 8 tokens
BY_HAND = [{BAD: 0.1 - 0.08 + 0.2, GOOD: 0.5 - 0.06 + 0.5}, {BAD: 0.5 - 0.10 + 0.2, GOOD: 0.5 - 0.08 + 0.5}]


def test_the_loop_gives_the_values_worked_out_by_hand() -> None:
    options = recipe()
    turns = talk_through(options, cast(options))
    assert [{s.candidate.text: pytest.approx(s.mr) for s in t.scored} for t in turns] == BY_HAND
    for turn, pair, values in zip(turns, pairs_of(turns, options), BY_HAND, strict=True):
        assert (pair.chosen.content, pair.rejected.content) == (GOOD, BAD)
        assert pair.chosen_mr - pair.rejected_mr == pytest.approx(values[GOOD] - values[BAD])
        assert pair.prompt == turn.talk and pair.turn == turn.talk.exchanges
    row = turns[0].rows()[1]
    assert (row["candidate"], row["style"], row["turn"], len(row["futures"])) == (GOOD, "proactive", 0, 2)
    assert row["mr"] == pytest.approx(0.94) and row["context"] == OPENED.as_dicts()


def test_the_conversation_goes_on_with_the_best_candidate_and_one_of_its_futures() -> None:
    options = recipe(simulate={"exchanges": 3, "futures": 3, "window": 2})
    numbers = iter(range(1000))
    turns = talk_through(options, cast(options, user=lambda _: f"zebra {next(numbers)}"))
    assert len(turns) == 3 and turns[0].talk == OPENED
    for before, after in pairwise(turns):
        best = max(before.scored, key=lambda s: s.mr)
        *kept, said, heard = after.talk.messages
        assert tuple(kept) == before.talk.messages and said == best.candidate.message
        assert heard in [r.conversation.messages[r.start + 1] for r in best.rollouts]
        assert heard.role == "user" and after.talk.exchanges == before.talk.exchanges + 1


def test_it_stops_at_the_cap_and_when_the_user_is_done() -> None:
    for cap in (1, 3):
        options = recipe(simulate={"exchanges": cap, "futures": 1, "window": 1})
        assert len(talk_through(options, cast(options))) == cap
    turns = talk_through(options, cast(options, user=lambda _: "[done]"))
    assert len(turns) == 1
    for scored in turns[0].scored:
        assert [r.stop_reason for r in scored.rollouts] == ["user_done"]
        assert scored.rollouts[0].conversation == OPENED + scored.candidate.message


def test_without_a_future_the_user_is_asked_between_the_turns_alone() -> None:
    options = recipe(simulate={"exchanges": 3, "futures": 1, "window": 0})
    user = ScriptedEngine(user_says)
    assert len(talk_through(options, cast(options, user=user))) == 3
    assert len(user.requests) == 2


def test_candidates_that_are_empty_or_repeat_are_left_out() -> None:
    options = recipe(propose={"candidates": 6, "proactive_ratio": 0})
    replies = ["", "a", " b ", "a", "\n", "b"]
    found = asyncio.run(propose(options, cast(options, policy=replies), TASK, OPENED))
    assert [c.text for c in found] == ["a", "b"] and {c.style for c in found} == {"plain"}


def test_every_candidate_has_a_seed_of_its_own_and_every_future_its_siblings_among_the_others() -> None:
    options = recipe(propose={"candidates": 4, "proactive_ratio": 0.5})
    who = cast(options, policy=lambda r: f"{says(r)} {r.sampling.seed}")  # type: ignore[union-attr]
    asyncio.run(propose(options, who, TASK, OPENED))
    candidates = [r.sampling.seed for r in who.policy.engine.requests]  # type: ignore[attr-defined]
    assert len(set(candidates)) == 4
    other = cast(options)
    asyncio.run(propose(options.model_copy(update={"seed": 1}), other, TASK, OPENED))
    assert not set(candidates) & {r.sampling.seed for r in other.policy.engine.requests}  # type: ignore[attr-defined]
    talk_through(options, who)
    users = [r.sampling.seed for r in who.simulator.engine.requests]  # type: ignore[attr-defined]
    turns, futures = 2, 2
    assert sorted(Counter(users).values()) == [options.propose.candidates] * turns * futures


def scored_as(*values: float | None) -> list[dict[str, Any]]:
    turn = {"task_id": "t", "turn": 0, "context": OPENED.as_dicts()}
    rewards = {"futures": [{"reward": 0.0}], "se": None}
    return [turn | rewards | {"candidate": str(i), "mr": value} for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "gap", "expected"),
    [
        ((0.1, 0.5, 0.3), 0.02, ("1", "0")),
        ((0.1, 0.5), 0.41, None),
        ((0.125, 0.625), 0.5, ("1", "0")),  # a gap of exactly min_gap is enough
        ((0.3, 0.3), 0.0, None),
        ((None, 0.5, 0.1, None), 0.02, ("1", "2")),
        ((None, 0.5), 0.02, None),
        ((None, None), 0.0, None),
        ((), 0.0, None),
    ],
)
def test_best_against_worst(
    values: tuple[float | None, ...], gap: float, expected: tuple[str, str] | None
) -> None:
    pair = best_against_worst(scored_as(*values), Pairs(min_gap=gap))
    assert (pair and (pair.chosen.content, pair.rejected.content)) == expected


def row_of(candidate: str, *rewards: float) -> dict[str, Any]:
    """What is needed of a row of rollouts.jsonl whose futures have these rewards."""
    row = {"task_id": "t", "turn": 0, "context": OPENED.as_dicts(), "candidate": candidate, "failures": []}
    futures = [{"metrics": {"asks": r, "tokens_read": 0.0}} for r in rewards]
    return weigh(row | {"futures": futures}, Reward(weights={"asks": 1.0}))


@pytest.mark.parametrize(
    ("best", "worst", "errors", "kept"),
    [
        # Means 1.0 and 0.5 in all of them. Chance moves both alike: the gap has no error.
        ((0.8, 1.2), (0.3, 0.7), 100.0, True),
        # It moves them apart: differences 0.9 and 0.1, s = 0.8 / sqrt(2), standard error 0.4.
        ((1.2, 0.8), (0.3, 0.7), 1.25, True),
        ((1.2, 0.8), (0.3, 0.7), 1.26, False),
        ((1.2, 0.8), (0.3, 0.7), 0.0, True),
        # Only the first two of the best have a counterpart.
        ((1.2, 0.8, 1.0), (0.3, 0.7), 1.25, True),
        ((1.2, 0.8, 1.0), (0.3, 0.7), 1.26, False),
        # Nothing is known about the error.
        ((1.0,), (0.5,), 0.1, False),
        ((1.0,), (0.5,), 0.0, True),
    ],
)
def test_a_gap_must_exceed_its_own_error(
    best: tuple[float, ...], worst: tuple[float, ...], errors: float, kept: bool
) -> None:
    rows = [row_of("worst", *worst), row_of("best", *best)]
    pair = best_against_worst(rows, Pairs(min_gap=0.02, min_gap_se=errors))
    assert (pair is not None) == kept
    if pair:
        assert (pair.chosen.content, pair.rejected.content) == ("best", "worst")
        row = pair.as_row()
        assert (row["chosen_se"], row["rejected_se"]) == (rows[1]["se"], rows[0]["se"])
    assert best_against_worst(rows, Pairs(min_gap=0.51, min_gap_se=errors)) is None


@pytest.mark.parametrize(("allocation", "least"), [("fixed", 2), ("adaptive", 4)])
def test_a_gap_without_an_error_is_refused_at_once(tmp_path: Path, allocation: str, least: int) -> None:
    options = recipe(simulate={"allocation": allocation}, pairs={"min_gap_se": 1.0})
    path = tmp_path / "recipe.yaml"
    path.write_text(options.dump(), "utf-8")
    with pytest.raises(RecipeError, match=f"pairs.min_gap_se .*simulate.futures to {least} or more"):
        load_recipe(path, [f"simulate.futures={least - 1}"])
    assert load_recipe(path, [f"simulate.futures={least}"]).pairs.min_gap_se == 1
    load_recipe(path, [f"simulate.futures={least - 1}", "pairs.min_gap_se=0"])


def test_the_standard_error_of_an_mr() -> None:
    options = recipe()
    candidate = Candidate(0, "plain", BAD, "end")
    scored = asyncio.run(mr(options, cast(options, user=["zebra", "hm"]), TASK, OPENED, candidate))
    assert [s.reward for s in scored.scores] == pytest.approx([0.62, 0.22])
    assert (scored.mr, scored.se) == pytest.approx((0.42, 0.2))  # s = 0.4 / sqrt(2)
    (row,) = Turn(TASK, OPENED, (scored,)).rows()
    assert row["se"] == scored.se
    twice = Reward(weights={"goal_coverage": 2.0, "interactivity": 2.0}, token_cost=0.02)
    assert weigh(row, twice)["se"] == pytest.approx(0.4)
    assert weigh(row | {"failures": ["x"]}, twice)["se"] is None
    one = recipe(simulate={"futures": 1})
    assert asyncio.run(mr(one, cast(one), TASK, OPENED, candidate)).se is None


ADAPTIVE = {"exchanges": 1, "futures": 4, "window": 1, "allocation": "adaptive"}
LIKED = {"ONE": 0.1, "TWO": 0.3, "THREE": 0.8, "FOUR": 0.85}


@pytest.mark.parametrize(
    ("fails", "futures"),
    [
        ([], [2, 2, 6, 6]),  # it is in question which is the best
        (["FOUR"], [6, 6, 2, 2]),  # without it, which is the worst
        (["TWO", "THREE"], [6, 2, 2, 6]),
        (["ONE", "TWO", "FOUR"], [2, 2, 2, 2]),
    ],
)
def test_adaptive_futures_go_where_they_decide(fails: list[str], futures: list[int]) -> None:
    options = recipe(simulate=ADAPTIVE, reward={"weights": {"interactivity": 1.0}, "token_cost": 0})

    def likes(request: Request) -> list[float]:
        yes = LIKED[after_last(request.prompt, *LIKED)]
        return [math.log(yes), math.log(1 - yes)]

    def user(request: Request) -> str:
        return "" if after_last(request.prompt, *LIKED) in fails else "hm"

    who = cast(options, policy=lambda _: "ok", user=user, judge=likes)
    candidates = [Candidate(i, "plain", text, "end") for i, text in enumerate(LIKED)]
    scored = asyncio.run(score_candidates(options, who, TASK, OPENED, candidates))
    assert [s.candidate for s in scored] == candidates
    for one, number in zip(scored, futures, strict=True):
        assert len(one.rollouts) + len(one.failures) == number
        assert [r.sample for r in one.rollouts] == ([] if one.failures else list(range(number)))
        assert math.isnan(one.mr) if one.failures else one.mr == pytest.approx(LIKED[one.candidate.text])


def test_another_allocation_finds_the_futures_that_are_there(tmp_path: Path) -> None:
    options = recipe(simulate=ADAPTIVE | {"allocation": "fixed", "futures": 8})
    _, first = asked(tmp_path / "c", options)
    assert first["user"] == 2 * 8
    turns, again = asked(tmp_path / "c", recipe(simulate=ADAPTIVE))
    assert [len(s.rollouts) for s in turns[0].scored] == [4, 4] and not again.total()


def json_judge(**kw: Any) -> Recipe:
    return recipe(
        judge={"style": "json", "questions": {"asks": {"ask": "INTERACTIVE", "scope": "reply"}}}, **kw
    )


def verdict(request: Request) -> str:
    """0.5 for everything, but nothing readable where the user said "beta"."""
    return "well, let me think" if "beta" in request.prompt else '{"reason": "x", "score": 3}'


def test_a_failed_judgement_leaves_its_candidate_out() -> None:
    options = json_judge()
    candidate = Candidate(0, "plain", BAD, "end")
    who = cast(options, user=["alpha", "beta"], verdict=verdict)
    scored = asyncio.run(mr(options, who, TASK, OPENED, candidate))
    assert len(scored.rollouts) == len(scored.scores) == len(scored.failures) == 1
    assert scored.rollouts[0].conversation.messages[2].content == "alpha"
    assert math.isnan(scored.mr)


def test_a_user_who_says_nothing_is_a_failure_too() -> None:
    options = recipe(simulate={"exchanges": 1, "futures": 1, "window": 1})
    turns = talk_through(options, cast(options, user=lambda r: "" if user_says(r) == "hm" else "zebra"))
    by_text = {s.candidate.text: s for s in turns[0].scored}
    assert math.isnan(by_text[BAD].mr) and by_text[BAD].failures and by_text[GOOD].mr == pytest.approx(0.94)
    assert pairs_of(turns, options) == []
    assert [row["mr"] for row in turns[0].rows()] == [None, pytest.approx(0.94)]


def test_all_failed_makes_no_pair_and_ends_the_conversation() -> None:
    options = json_judge()
    turns = talk_through(options, cast(options, user=lambda _: "beta", verdict=verdict))
    assert len(turns) == 1 and pairs_of(turns, options) == []
    assert all(math.isnan(s.mr) and len(s.failures) == 2 for s in turns[0].scored)


class Jittery(ScriptedEngine):
    """Answers right, but after a while that differs from run to run."""

    def __init__(self, answer: Any, noise: random.Random):
        super().__init__(answer)
        self.noise = noise

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        await asyncio.sleep(self.noise.random() / 500)
        return await super().generate(prompt, sampling)


def test_the_output_does_not_depend_on_which_task_is_ready_first() -> None:
    options = recipe(engine={"concurrent_tasks": 4})
    tasks = [Task(f"t{i}", f"make card {i}", ("it has a zebra",)) for i in range(7)]

    async def rows(noise: int) -> list[dict[str, Any]]:
        rng = random.Random(noise)
        seeded = Jittery(lambda r: f"{says(r)} {r.sampling.seed}", rng)  # type: ignore[union-attr]
        who = cast(options, policy=seeded, user=Jittery(user_says, rng))
        found = [turns async for turns in converse_all(options, who, tasks)]
        assert [turns[0].task.id for turns in found] == [t.id for t in tasks]
        return [row for turns in found for turn in turns for row in turn.rows()]

    first = asyncio.run(rows(1))
    assert len(first) == 7 * 2 * 2 and first == asyncio.run(rows(2))


def test_an_error_of_the_engine_arrives_as_itself() -> None:
    def too_long(request: Request) -> str:
        raise ModelError("a conversation needs 9 tokens, the context has 8", "Raise engine.context.")

    async def work() -> None:
        async for _ in converse_all(options, cast(options, policy=too_long), [TASK, TASK]):
            pass

    options = recipe()
    with pytest.raises(ModelError, match="needs 9 tokens"):
        asyncio.run(work())


def asked(store: Path, how: Recipe) -> tuple[list[Turn], Counter[str]]:
    """The conversation by this recipe, and how many requests each role had that were not stored."""
    engines = {
        "policy": ScriptedEngine(lambda r: f"{says(r)} {r.sampling.seed}", fingerprint="policy"),  # type: ignore[union-attr]
        "user": ScriptedEngine(lambda r: f"{user_says(r)} {r.sampling.seed}", fingerprint="user"),  # type: ignore[union-attr]
        "judge": ScriptedEngine((), judges, fingerprint="judge"),
    }
    kept = Store(store)
    turns = talk_through(how, cast(how, *(CachedEngine(engine, kept) for engine in engines.values())))
    kept.close()
    return turns, Counter({role: len(engine.requests) for role, engine in engines.items()})


ONE_TURN = {"simulate": {"exchanges": 1, "futures": 2, "window": 1}}


def test_more_futures_and_candidates_compute_only_what_is_new(tmp_path: Path) -> None:
    small = recipe(**ONE_TURN, propose={"candidates": 2, "proactive_ratio": 0.5})
    _, first = asked(tmp_path / "c", small)
    assert first["policy"] == 2 + 2 * 2 and first["user"] == 2 * 2
    futures = recipe(simulate=ONE_TURN["simulate"] | {"futures": 3}, propose=small.propose)
    _, more = asked(tmp_path / "c", futures)
    assert (more["policy"], more["user"]) == (2, 2)  # one future more for each of two candidates
    _, wide = asked(tmp_path / "c", recipe(**ONE_TURN, propose={"candidates": 4, "proactive_ratio": 0.5}))
    assert (wide["policy"], wide["user"]) == (2 + 2 * 2, 2 * 2)  # two candidates, two futures each


def test_one_changed_question_is_the_only_one_asked_again(tmp_path: Path) -> None:
    def questions(second: str) -> Recipe:
        asks = {name: {"ask": f"INTERACTIVE {text}"} for name, text in (("a", "1"), ("b", second))}
        return recipe(**ONE_TURN, judge={"questions": asks})

    _, first = asked(tmp_path / "c", questions("2"))
    _, again = asked(tmp_path / "c", questions("3"))
    assert again == Counter(judge=4) and first["judge"] > 4  # one question about each of four futures


def test_new_weights_and_gaps_only_weigh_anew() -> None:
    options = recipe()
    rows = [row for turn in talk_through(options, cast(options)) for row in turn.rows()]
    assert [weigh(row, options.reward) for row in rows] == rows
    weights = {"weights": {"goal_coverage": 0.0, "interactivity": 2.0}, "token_cost": 0.02}
    anew = [weigh(row, recipe(reward=weights).reward) for row in rows]
    by_hand = [-0.16 + 0.4, -0.12 + 1.0, -0.2 + 0.4, -0.16 + 1.0]
    assert [row["mr"] for row in anew] == pytest.approx(by_hand)
    assert [pair.chosen_mr for pair in build_pairs(anew, Pairs(min_gap=0.6))] == pytest.approx([0.88, 0.84])
    assert build_pairs(anew, Pairs(min_gap=0.65)) == []
    assert weigh(rows[0] | {"failures": ["x"]}, options.reward)["mr"] is None


def test_train_and_held_out_tasks_never_overlap() -> None:
    tasks = [Task(str(i), "x", ("y",)) for i in range(10)]
    for train, held_out in ((5, 5), (1, 9), (3, 2)):
        ours, theirs = split(tasks, train, held_out)
        assert (len(ours), len(theirs)) == (train, held_out)
        assert not {t.id for t in ours} & {t.id for t in theirs}
