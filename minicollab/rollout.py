"""Propose candidates, and roll a conversation forward from one (paper, section 3.1)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from minicollab.cast import Cast, Measured
from minicollab.failures import Failure
from minicollab.metrics import chosen
from minicollab.recipe import Recipe
from minicollab.reward import contested, multiturn_aware_reward, reward, standard_error
from minicollab.schema import (
    Candidate,
    Conversation,
    Message,
    Rollout,
    Score,
    ScoredCandidate,
    Task,
    most_cut,
)
from minicollab.seeds import seed_of

Future = tuple[Rollout, Score] | str
"""A scored future, or why there is none."""


async def propose(recipe: Recipe, cast: Cast, task: Task, talk: Conversation) -> list[Candidate]:
    """K candidates for the assistant's next message; the last share of them asked to be proactive.

    Empty ones and repetitions are left out, so there may be fewer than K.
    """
    options = recipe.propose
    plain = options.candidates - round(options.candidates * options.proactive_ratio)

    async def one(index: int) -> Candidate:
        # Counted within its style: with more candidates the old ones stay as they are.
        style, number = ("plain", index) if index < plain else ("proactive", index - plain)
        seed = seed_of(recipe.seed, task.id, talk.exchanges, style, number, "candidate")
        if style == "plain":
            answer, cut = await cast.policy.reply(talk, seed)
        else:
            answer, cut = await cast.policy.proactive_reply(talk, seed, options.style)
        return Candidate(index, style, answer.text.strip(), answer.stop_reason, cut)  # type: ignore[arg-type]

    candidates = await asyncio.gather(*(one(i) for i in range(options.candidates)))
    return list({c.text: c for c in reversed(candidates) if c.text}.values())[::-1]


async def roll(
    recipe: Recipe,
    cast: Cast,
    task: Task,
    talk: Conversation,
    candidate: Candidate,
    window: int,
    *where: str | int,
) -> Rollout:
    """The candidate and up to `window` simulated exchanges (user, then policy) after it.

    `where` are the coordinates of this future; the last one is its sample number.
    """
    conversation, start, cut = talk + candidate.message, len(talk), candidate.cut
    for step in range(window):
        seeds = [seed_of(recipe.seed, task.id, *where, step, role) for role in ("user", "assistant")]
        said, unseen = await cast.simulator.next(task, conversation, seeds[0])
        cut = cut | unseen
        if said is None:
            return Rollout(conversation, start, int(where[-1]), "user_done", cut)
        answer, unseen = await cast.policy.reply(conversation + said, seeds[1])
        cut = cut | unseen
        conversation = conversation + said + Message("assistant", answer.text.strip())
    return Rollout(conversation, start, int(where[-1]), "window", cut)


async def score(recipe: Recipe, cast: Cast, task: Task, rollout: Rollout) -> Score:
    """Every metric of a finished rollout, and its reward."""
    wanted = chosen(recipe)
    found: list[Measured] = await asyncio.gather(*(m(rollout, task, cast) for m in wanted.values()))
    measured = dict(zip(wanted, found, strict=True))
    metrics = {name: m.value for name, m in measured.items()}
    judgements = {question: answers for m in found for question, answers in m.judgements.items()}
    extracted = {name: m.extracted for name, m in measured.items() if m.extracted is not None}
    cut = most_cut(m.cut for m in found)
    return Score(metrics, judgements, reward(metrics, recipe.reward), cut, extracted)


async def score_candidates(
    recipe: Recipe,
    cast: Cast,
    task: Task,
    talk: Conversation,
    candidates: Sequence[Candidate],
    step: Callable[[], None] = lambda: None,
) -> list[ScoredCandidate]:
    """The candidates of a turn with their MRs; how many futures each has, `simulate.allocation` says.
    `step` is called when a future is played, and when it is scored.

    Samples are numbered from 0 for every candidate: the same futures cost nothing again, whatever
    the allocation.
    """
    options = recipe.simulate
    if options.allocation == "fixed":
        return await asyncio.gather(*(mr(recipe, cast, task, talk, c, step) for c in candidates))
    first = range(max(1, options.futures // 2))
    found = await asyncio.gather(*(_futures(recipe, cast, task, talk, c, first, step) for c in candidates))
    while chosen := contested([_rewards(futures) for futures in found], options.futures):
        one_more = (_futures(recipe, cast, task, talk, candidates[i], [len(found[i])], step) for i in chosen)
        for i, futures in zip(chosen, await asyncio.gather(*one_more), strict=True):
            found[i] += futures
    return [_averaged(c, futures) for c, futures in zip(candidates, found, strict=True)]


async def mr(
    recipe: Recipe,
    cast: Cast,
    task: Task,
    talk: Conversation,
    candidate: Candidate,
    step: Callable[[], None] = lambda: None,
) -> ScoredCandidate:
    """The candidate's Multiturn-aware Reward: S futures of w exchanges, scored and averaged."""
    samples = range(recipe.simulate.futures)
    return _averaged(candidate, await _futures(recipe, cast, task, talk, candidate, samples, step))


async def _futures(
    recipe: Recipe,
    cast: Cast,
    task: Task,
    talk: Conversation,
    candidate: Candidate,
    samples: Iterable[int],
    step: Callable[[], None],
) -> list[Future]:
    """The sample-th futures of all candidates draw the same seeds, so that chance favours none."""
    window = recipe.simulate.window

    async def future(sample: int) -> Future:
        try:
            rollout = await roll(recipe, cast, task, talk, candidate, window, talk.exchanges, sample)
            step()
            found: Future = rollout, await score(recipe, cast, task, rollout)
        except Failure as failure:
            return str(failure)
        step()
        return found

    return await asyncio.gather(*(future(sample) for sample in samples))


def _rewards(futures: Sequence[Future]) -> list[float]:
    return [float("nan") if isinstance(future, str) else future[1].reward for future in futures]


def _averaged(candidate: Candidate, futures: Sequence[Future]) -> ScoredCandidate:
    """A future that failed (no user message, no verdict) is named in `failures`, and `mr` is NaN."""
    finished = [future for future in futures if not isinstance(future, str)]
    failures = tuple(future for future in futures if isinstance(future, str))
    rollouts, scores = tuple(r for r, _ in finished), tuple(s for _, s in finished)
    rewards = _rewards(futures)
    error = None if failures else standard_error(rewards)
    return ScoredCandidate(candidate, rollouts, scores, multiturn_aware_reward(rewards), error, failures)
