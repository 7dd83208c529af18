"""What can go wrong in a way that the person at the keyboard can mend."""

from __future__ import annotations


class MinicollabError(Exception):
    """Says in one line what failed and what to type (or change) next.

    Only `cli.py` turns it into an exit; its `code` is the exit status.
    """

    code = 1

    def __init__(self, what: str, remedy: str):
        self.what = " ".join(what.split()).removesuffix(".")
        self.remedy = " ".join(remedy.split())
        super().__init__(f"{self.what}. {self.remedy}")


class RecipeError(MinicollabError):
    """A recipe that cannot be read, or says something that does not exist."""

    code = 2


class TaskError(MinicollabError):
    """A task file that is missing, empty or broken."""

    code = 3


class ModelError(MinicollabError):
    """A model file that is missing, broken or unfit for its role."""

    code = 4


class NoLogprobsError(ModelError):
    """A server that gives none of the log-probabilities that the judge's answers are read from."""

    def __init__(self, what: str):
        super().__init__(
            what,
            "Set judge.style: json in the recipe; judge-check --short and simulator-check need llama-server"
            " or vLLM.",
        )


class RunError(MinicollabError):
    """A run directory that lacks what a stage needs, or cannot be written."""

    code = 5


class StageError(MinicollabError):
    """A stage that ran and did not produce what it must."""

    code = 6


class SandboxError(MinicollabError):
    """Model-written code cannot be run here without danger, and so is not."""

    code = 7
