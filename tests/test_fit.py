"""A conversation that is too long is cut by the policy of `fit`, and whoever reads the results can see it.

A token of the scripted engine is a word.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from test_pairs import BAD, GOOD, cast, judges, recipe, user_says

from minicollab import prompts
from minicollab import recipe as recipes
from minicollab.cast import Cast, Policy
from minicollab.engine.base import Prompt
from minicollab.engine.scripted import ScriptedEngine
from minicollab.errors import ModelError
from minicollab.evaluate import compare, play
from minicollab.fit import fit
from minicollab.judge import Judge
from minicollab.models import SMOLLM2, resolve
from minicollab.pairs import converse, converse_all
from minicollab.recipe import Generation, Question
from minicollab.rollout import mr, propose
from minicollab.schema import Candidate, Conversation, Cut, Message, Task, most_cut
from minicollab.simulator import Simulator

WIDE = 10_000
TASK = Task("t", "make a card", ("it has a zebra",))


def talk_of(*exchanges: int, user_last: bool = False, system: bool = False) -> Conversation:
    """Message i is `mi` and fillers: as many words as the exchange's number, user and assistant alike."""
    words = [n for n in exchanges for _ in ("user", "assistant")][: -1 if user_last else None]
    messages = [
        Message("assistant" if i % 2 else "user", " ".join([f"m{i}", *["x"] * (n - 1)]))
        for i, n in enumerate(words)
    ]
    return Conversation(((Message("system", "rules rules"),) if system else ()) + tuple(messages))


class Counting(ScriptedEngine):
    looks = 0

    def length(self, prompt: Prompt) -> int:
        self.looks += 1
        return super().length(prompt)


def shown_of(talk: Conversation, context: int, answer: int = 0) -> tuple[list[str], dict[str, int], int]:
    """The messages shown (first words), what was cut, and how often the engine had to count."""
    engine = Counting(context=context)

    def show(shown: Conversation) -> Prompt:
        return engine.plain(" ".join(m.content for m in shown))

    prompt, cut = fit(engine, "policy", talk, show, answer)
    return [w for w in prompt[0].text.split() if w != "x"], dict(cut), engine.looks


def test_what_fits_is_shown_whole_after_one_look() -> None:
    talk = talk_of(5, 5, 5)
    assert shown_of(talk, context=30) == ([f"m{i}" for i in range(6)], {}, 1)
    assert shown_of(talk, context=37, answer=7) == ([f"m{i}" for i in range(6)], {}, 1)


@pytest.mark.parametrize(
    ("context", "kept"), [(29, 4), (20, 4), (19, 2), (10, 2)], ids=["1 short", "exactly", "2 gone", "least"]
)
def test_oldest_exchanges_go_first_and_no_more_of_them_than_needed(context: int, kept: int) -> None:
    shown, cut, _ = shown_of(talk_of(5, 5, 5), context)
    assert shown == [f"m{i}" for i in range(6 - kept, 6)] and cut == {"policy": 6 - kept}


def test_the_answer_needs_its_room_too() -> None:
    assert shown_of(talk_of(5, 5, 5), context=29, answer=9)[1] == {"policy": 2}
    assert shown_of(talk_of(5, 5, 5), context=29, answer=10)[1] == {"policy": 4}


def test_system_and_last_user_message_stay() -> None:
    shown, cut, _ = shown_of(talk_of(9, 9, 3, user_last=True, system=True), context=5)
    assert shown == ["rules", "rules", "m4"] and cut == {"policy": 4}


def test_a_long_conversation_takes_few_looks() -> None:
    shown, cut, looks = shown_of(talk_of(*[2] * 500), context=400)
    assert len(shown) == 200 and cut == {"policy": 800} and looks <= 11


@pytest.mark.parametrize("talk", [talk_of(20), talk_of(3, 20), talk_of(20, user_last=True, system=True)])
def test_what_does_not_fit_even_so_is_an_error_in_one_line(talk: Conversation) -> None:
    with pytest.raises(ModelError) as error:
        shown_of(talk, context=19, answer=5)
    needed = "27" if len(talk) == 2 and talk.messages[0].role == "system" else "45"
    assert f"the policy needs {needed} tokens, 5 of them" in error.value.what
    assert "19" in error.value.what and "\n" not in str(error.value)
    assert "engine.context" in error.value.remedy and "max_tokens" in error.value.remedy


def test_the_most_of_each_role_counts() -> None:
    cuts = [Cut(), Cut(judge=2), Cut(judge=4, policy=2), Cut(judge=2)]
    assert most_cut(cuts) == {"judge": 4, "policy": 2} and most_cut([]) == {}


# Every request of every role


Ask = Callable[[Any, Conversation], Coroutine[Any, Any, tuple[Any, Cut]]]


def rubric_or_json(style: str) -> Ask:
    options = recipes.Judge(style=style, questions={"q": Question(ask="?")})  # type: ignore[arg-type]
    return lambda engine, talk: Judge(engine, options).ask(talk, "Is QQ asked?")


def simulated(style: str) -> Ask:
    options = recipes.Simulator(style=style, generation=Generation(max_tokens=20))  # type: ignore[arg-type]
    return lambda engine, talk: Simulator(engine, options).next(TASK, talk, 1)


def said(engine: Any, **kw: bool) -> Policy:
    return Policy(engine, Generation(max_tokens=20), **kw)


ROLES: dict[str, tuple[str, int, bool, Ask]] = {  # role, tokens of an answer, the user spoke last
    "chat": ("policy", 20, True, lambda e, t: said(e).reply(t, 1)),
    "proactive system": ("policy", 20, True, lambda e, t: said(e, proactive_system=True).reply(t, 1)),
    "proactive transcript": ("policy", 20, True, lambda e, t: said(e).proactive_reply(t, 1, "transcript")),
    "simulator transcript": ("simulator", 20, False, simulated("transcript")),
    "simulator chat": ("simulator", 20, False, simulated("chat")),
    "rubric": ("judge", 4, False, rubric_or_json("rubric")),
    "json": ("judge", 120, False, rubric_or_json("json")),
}


@pytest.mark.parametrize("name", ROLES)
def test_every_request_is_as_if_the_oldest_exchanges_had_not_been(name: str) -> None:
    role, answer, user_last, ask = ROLES[name]
    talk = talk_of(10, 10, 10, 10, user_last=user_last)

    def asked(about: Conversation, context: int) -> tuple[str, Cut]:
        engine = ScriptedEngine(['{"reason": "so", "score": 5}'], [[0.0, -1.0]], context=context)
        _, cut = asyncio.run(ask(engine, about))
        (request,) = engine.requests
        return request.prompt, cut

    for left_out in (0, 2, 4, 6):
        prompt, cut = asked(Conversation(talk.messages[left_out:]), 10_000)
        just_enough = len(prompt.split()) + answer
        assert not cut and asked(talk, just_enough) == (prompt, Cut({role: left_out} if left_out else ()))
    with pytest.raises(ModelError, match=f"the {role} needs {just_enough} tokens"):
        asked(talk, just_enough - 1)


def test_who_has_told_something_may_be_done_also_if_it_is_not_shown() -> None:
    talk = talk_of(10, 10, 10)
    room = len(prompts.load("simulator_transcript").split()) + 80
    user = Simulator(ScriptedEngine(["[done]"], context=room), recipe().simulator)
    assert asyncio.run(user.next(TASK, talk, 1)) == (None, {"simulator": 4})


# What becomes of it


def narrow(options: recipes.Recipe, **contexts: int) -> Cast:
    """The cast of test_pairs, with less context for the roles named."""
    scripts: dict[str, tuple[Any, ...]] = {
        "policy": (lambda r: BAD if r.prompt.startswith("<user>") else GOOD,),
        "user": (user_says,),
        "judge": ((), judges),
    }
    return cast(options, **{r: ScriptedEngine(*scripts[r], context=n) for r, n in contexts.items()})


def short(**sections: Any) -> recipes.Recipe:
    return recipe(policy={"max_tokens": 10}, simulator={"generation": {"max_tokens": 10}}, **sections)


def needs(engine: Any, answer: int = 10) -> list[int]:
    """Tokens that the requests so far needed, the most first."""
    return sorted((len(r.prompt.split()) + answer for r in engine.requests), reverse=True)


TOLD = Conversation((Message("user", "make a card"), Message("assistant", BAD), Message("user", "hm")))


def test_candidates_futures_and_judgements_say_what_was_cut() -> None:
    options, wide = short(), narrow(short(), policy=WIDE, judge=WIDE)
    candidates = asyncio.run(propose(options, wide, TASK, TOLD))
    assert [c.cut for c in candidates] == [{}, {}]
    # The chat prompt has room for everything, the transcript with its examples has not.
    tight = narrow(options, policy=needs(wide.policy.engine)[0] - 1)
    candidates = asyncio.run(propose(options, tight, TASK, TOLD))
    assert {c.style: dict(c.cut) for c in candidates} == {"plain": {}, "proactive": {"policy": 2}}

    scored = asyncio.run(mr(options, wide, TASK, TOLD, candidates[1]))
    assert [r.cut for r in scored.rollouts] == [{"policy": 2}] * 2, "the candidate's own"
    assert [s.cut for s in scored.scores] == [{}, {}]
    tight = narrow(options, judge=needs(wide.judge.engine, 4)[0] - 1)
    scored = asyncio.run(mr(options, tight, TASK, TOLD, candidates[1]))
    assert [s.cut for s in scored.scores] == [{"judge": 2}] * 2


def test_rows_hold_the_messages_left_out_of_each_role() -> None:
    options = short(simulate={"exchanges": 3, "futures": 1, "window": 1})
    wide = narrow(options, policy=WIDE)
    turns = asyncio.run(converse(options, wide, TASK))
    assert all(not row["cut"] and not row["futures"][0]["cut"] for t in turns for row in t.rows())
    tight = narrow(options, policy=needs(wide.policy.engine)[0] - 1)
    *before, last = asyncio.run(converse(options, tight, TASK))
    assert all(not row["cut"] and not row["futures"][0]["cut"] for t in before for row in t.rows())
    rows = json.loads(json.dumps(last.rows()))
    assert {row["style"]: row["cut"] for row in rows} == {"plain": {}, "proactive": {"policy": 2}}
    assert all(row["futures"][0]["cut"] == row["cut"] for row in rows)


def test_what_the_user_says_outside_a_future_is_recorded_too() -> None:
    options = short(simulate={"exchanges": 3, "futures": 1, "window": 0})
    wide = narrow(options, user=WIDE)
    assert not any(turn.cut for turn in asyncio.run(converse(options, wide, TASK)))
    tight = narrow(options, user=needs(wide.simulator.engine)[0] - 1)
    turns = asyncio.run(converse(options, tight, TASK))
    assert [turn.cut for turn in turns] == [{}, {}, {"simulator": 2}]
    assert all(row["cut"] == {"simulator": 2} for row in turns[2].rows())


def test_an_evaluation_counts_conversations_that_were_cut() -> None:
    options = short(eval={"samples": 1, "exchanges": 3})
    wide = narrow(options, policy=WIDE)
    for who, cut in ((wide, {}), (None, {"policy": 2})):
        who = who or narrow(options, policy=needs(wide.policy.engine)[0] - 1)
        played = [asyncio.run(play(options, who, arm, TASK, 0)) for arm in ("base", "proactive", "trained")]
        assert [p.row()["cut"] for p in played] == [cut] * 3
        assert compare(played, 0, 100)["cut_futures"] == 3 * bool(cut)


def test_an_opening_that_cannot_be_cut_stops_the_run_in_one_line() -> None:
    options = short()
    tasks = [TASK, Task("u", "make " * 300, ("it has a zebra",))]

    async def work() -> None:
        async for _ in converse_all(options, narrow(options, policy=250), tasks):
            pass

    with pytest.raises(ModelError, match=r"the policy needs 3\d\d tokens"):
        asyncio.run(work())


@pytest.mark.slow
def test_a_real_model_answers_a_conversation_longer_than_its_context() -> None:
    from minicollab.engine.llama import LlamaEngine

    gguf = resolve(SMOLLM2, Path("."))
    engine = LlamaEngine(gguf, "smollm2", recipes.Engine(context=512, sequences=4, threads=1))
    options = recipe(
        propose={"candidates": 2, "proactive_ratio": 0, "style": "system"},
        policy={"max_tokens": 16, "temperature": 0},
        simulator={"style": "chat", "generation": {"max_tokens": 12}},
        judge={"questions": {"asks": {"ask": "Does the assistant ask?", "scope": "reply"}}},
    )
    who = Cast(
        Policy(engine, options.policy), Simulator(engine, options.simulator), Judge(engine, options.judge)
    )
    talk = talk_of(*[40] * 20, user_last=True)
    assert engine.length(engine.chat(talk)) > 2 * engine.context

    async def work() -> Any:
        reply, cut = await who.policy.reply(talk, 1)
        candidate = Candidate(0, "plain", reply.text, reply.stop_reason, cut)
        rollout = (await mr(options, who, TASK, talk, candidate)).rollouts
        return reply, cut, rollout, await who.judge.ask(talk + candidate.message, "Does the user ask?")

    reply, cut, rollouts, (value, unseen) = asyncio.run(work())
    assert reply.tokens and 0 < cut["policy"] < len(talk) and cut["policy"] % 2 == 0
    shown = Conversation(talk.messages[cut["policy"] :])
    assert engine.length(engine.chat(shown)) + 16 <= 512, "it fits"
    wider = Conversation(talk.messages[cut["policy"] - 2 :])
    assert engine.length(engine.chat(wider)) + 16 > 512, "and no more had to go"
    assert rollouts and all(r.cut["policy"] >= cut["policy"] and r.cut["simulator"] > 0 for r in rollouts)
    assert 0 <= value <= 1 and unseen["judge"] > cut["policy"]
