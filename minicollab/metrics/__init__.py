"""What is measured on a finished conversation: one small file a metric.

Each is `async measure(rollout, task, cast) -> Measured`: a number, and the judge's answers
behind it, by question.
"""

from __future__ import annotations

from minicollab.metrics import goal_coverage, interactivity, tokens_read

METRICS = {
    "goal_coverage": goal_coverage.measure,
    "interactivity": interactivity.measure,
    "tokens_read": tokens_read.measure,
}
