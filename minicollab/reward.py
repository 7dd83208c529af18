"""The reward of one finished conversation and the MR of a reply: pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from minicollab.recipe import Reward


def reward(metrics: Mapping[str, float], options: Reward) -> float:
    """R(t|g) = R_ext - min(lambda * tokens, 1) + R_judge (paper, section 3.2), with the recipe's
    weights on R_ext (goal coverage) and R_judge (interactivity)."""
    cost = min(options.token_cost * metrics["tokens_read"], 1.0)
    weights = options.weights
    external = weights.goal_coverage * metrics["goal_coverage"]
    return external - cost + weights.interactivity * metrics["interactivity"]


def multiturn_aware_reward(rewards: Sequence[float]) -> float:
    """MR: the mean over a reply's sampled futures (paper, equation 2)."""
    return fmean(rewards)
