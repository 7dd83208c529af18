"""Every metric on conversations whose value can be worked out by hand."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minicollab.cast import Cast, Measured, Policy
from minicollab.engine.scripted import Request, ScriptedEngine
from minicollab.errors import RecipeError, RunError, TaskError
from minicollab.failures import Failure
from minicollab.judge import Judge
from minicollab.metrics import METRICS, follow_up, function, measures
from minicollab.metrics.bleu import bleu
from minicollab.metrics.copying import copy_out
from minicollab.metrics.pass_rate import complete
from minicollab.recipe import METRICS as NAMES
from minicollab.recipe import Generation, Recipe
from minicollab.recipe import Judge as JudgeOptions
from minicollab.recipe import Simulator as SimulatorOptions
from minicollab.schema import Conversation, Message, Rollout, Task
from minicollab.simulator import Simulator

HALF = Task("t", "a sum please", ("it is a half",), reference=r"\frac{1}{2}")


def talk(*texts: str) -> Rollout:
    """User and assistant in turns."""
    messages = [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]
    return Rollout(Conversation(tuple(messages)), 1, 0, "window")


def measure(
    name: str, rollout: Rollout, task: Task, engine: ScriptedEngine | None = None, **parts: Any
) -> Measured:
    engine = engine or ScriptedEngine()
    people = (
        Policy(engine, Generation()),
        Simulator(engine, SimulatorOptions()),
        Judge(engine, JudgeOptions()),
    )
    return asyncio.run(METRICS[name](rollout, task, Cast(*people, **parts)))  # type: ignore[arg-type]


def test_every_metric_that_a_recipe_may_name_is_there() -> None:
    assert set(METRICS) == set(NAMES)


def test_accuracy() -> None:
    right = measure("accuracy", talk("q", r"It is $\boxed{0.5}$."), HALF)
    assert right == Measured(1.0, extracted="0.5")
    assert measure("accuracy", talk("q", "The answer is 2."), HALF) == Measured(0.0, extracted="2")


def test_an_answer_that_no_rule_finds_is_copied_by_the_model() -> None:
    said = talk("q", "Halving one you are left with\n1/2, I think")
    assert measure("accuracy", said, HALF, ScriptedEngine(["1/2"])) == Measured(1.0, extracted="1/2")
    for invented in ("0.5", "2", "1", "hink"):
        assert measure("accuracy", said, HALF, ScriptedEngine([invented])) == Measured(0.0, extracted="")
    assert measure("accuracy", talk("1/2?", "Why?"), HALF, ScriptedEngine(["1/2"])).extracted == ""
    assert measure("accuracy", said, HALF, ScriptedEngine(["None."])).extracted == ""


def test_what_the_model_copies_keeps_its_lines() -> None:
    code = "def f(x):\n    return 1"
    judge = SimpleNamespace(engine=ScriptedEngine(["def f(x): return 1"], context=800))
    rollout = talk(*["so long ago " * 5] * 30, "q", f"You want this. {code}")
    found, cut = asyncio.run(copy_out(rollout.conversation, "code", SimpleNamespace(judge=judge)))  # type: ignore[arg-type]
    assert found == code and cut["judge"] > 0


def test_accuracy_judged_asks_about_the_reference() -> None:
    engine = ScriptedEngine(score=[[math.log(0.3), math.log(0.1)]])
    found = measure("accuracy_judged", talk("q", "a half"), HALF, engine)
    assert found.value == pytest.approx(0.75) and found.judgements["accuracy_judged"] == (found.value,)
    assert HALF.reference in engine.requests[0].prompt


# BLEU

CAT = "the cat sat on the mat"


@pytest.mark.parametrize(
    ("document", "reference", "value"),
    [
        (CAT, CAT, 1.0),
        # 6 of 7 words, 5 of 6 pairs, 4 of 5 triples, 3 of 4 quadruples: (3 / 7) ^ (1 / 4)
        (f"{CAT} today", CAT, (3 / 7) ** 0.25),
        # all n-grams match, 4 of 6 words: only brevity counts
        ("the cat sat on", CAT, math.exp(1 - 6 / 4)),
        # clipped: "the" counts twice of seven, pairs 0 of 6, triples 0 of 5, quadruples 0 of 4
        ("the the the the the the the", CAT, (2 / 7 * 1 / (2 * 6) * 1 / (4 * 5) * 1 / (8 * 4)) ** 0.25),
        # 13a parts a full stop from its word and keeps case: 3 of 4, 2 of 3, 1 of 2, none of 1
        ("The cat sat.", "the cat sat.", (3 / 4 * 2 / 3 * 1 / 2 * 1 / (2 * 1)) ** 0.25),
        ("", CAT, 0.0),
    ],
)
def test_bleu_by_hand(document: str, reference: str, value: float) -> None:
    assert bleu(document, reference) == pytest.approx(value)


LONG = "A heedless pride in our present strength would blind us to the facts of the past, and its 2 pitfalls."
OTHER = "Pride in our strength would blind us: to facts of the past, and all of its 2 pitfalls ahead."


def test_bleu_is_sacrebleu_s_of_a_corpus_of_one() -> None:
    from sacrebleu import corpus_bleu

    for document, reference in [(LONG, OTHER), (OTHER, LONG), (LONG, LONG)]:
        expected = corpus_bleu([document], [[reference]], tokenize="13a", smooth_method="exp").score / 100
        assert bleu(document, reference) == pytest.approx(expected)


def characters_bleu(document: str, reference: str) -> float:
    """What the authors' code measures: the same formula over the characters of the two strings."""
    logs = []
    for n in range(1, 5):
        said, wanted = (
            Counter(zip(*(text[i:] for i in range(n)), strict=False)) for text in (document, reference)
        )
        logs.append(math.log((said & wanted).total() / said.total()))
    return math.exp(min(0, 1 - len(reference) / len(document)) + sum(logs) / 4)


def test_bleu_of_characters_is_another_thing() -> None:
    assert characters_bleu(LONG, LONG) == bleu(LONG, LONG) == pytest.approx(1)
    assert characters_bleu(LONG, OTHER) > 1.5 * bleu(LONG, OTHER)
    unrelated = "There is a plan of the house on the table, but no one has seen the garden since then."
    assert bleu(LONG, unrelated) < 0.05 < 0.2 < characters_bleu(LONG, unrelated)


def test_bleu_of_a_conversation_is_that_of_its_last_draft() -> None:
    task = Task("t", "a text", (), reference=LONG + " " + OTHER)
    rollout = talk("a text", "Sure, here is the text:\n\n" + task.reference, "thanks", "You are welcome!")
    assert measure("bleu", rollout, task) == Measured(1.0, extracted=task.reference)
    assert measure("bleu", talk("a text", "About what?"), task) == Measured(0.0, extracted="")


# pass rate

PROMPT = "import math\nSIDES = 2\ndef area(r):\n"
CODE = "def area(r):\n    return SIDES * math.pi * r"
PROGRAMMING = Task(
    "t", "a function", (), metadata={"entry_point": "area", "test": "TESTS", "code_prompt": PROMPT}
)


class Sandbox:
    """Runs nothing: says what it was given, and that it passed if it is told so."""

    def __init__(self, passed: bool):
        self.passed, self.given = passed, list[tuple[str, str]]()

    async def test(self, code: str, tests: str) -> SimpleNamespace:
        self.given.append((code, tests))
        return SimpleNamespace(passed=self.passed, tests=1, reason="")


@pytest.mark.parametrize("passed", [True, False])
def test_pass_rate(passed: bool) -> None:
    sandbox = Sandbox(passed)
    rollout = talk("a function", f"```python\n{CODE}\n```")
    found = measure("pass_rate", rollout, PROGRAMMING, sandbox=sandbox)
    assert found == Measured(float(passed), extracted=CODE + "\n")
    ((program, tests),) = sandbox.given
    space: dict[str, Any] = {}
    exec(program, space)
    assert space["area"](1) == pytest.approx(2 * math.pi) and tests == "TESTS"


def test_no_code_does_not_pass_and_is_not_run() -> None:
    sandbox = Sandbox(True)
    found = measure(
        "pass_rate", talk("a function", "Of what?"), PROGRAMMING, ScriptedEngine(["none"]), sandbox=sandbox
    )
    assert found == Measured(0.0, extracted="") and not sandbox.given
    with pytest.raises(RunError, match="no sandbox"):
        measure("pass_rate", talk("a function", f"```python\n{CODE}\n```"), PROGRAMMING)


def test_code_that_cannot_stand_after_the_prompt_stands_alone() -> None:
    assert complete(CODE, "") == CODE
    assert complete(CODE, "import math") == CODE
    future = "from __future__ import annotations\n" + CODE
    assert complete(future, PROMPT) == future


# found

PIANO = Task("t", "guess", ("a piano",), reference="a piano")


@pytest.mark.parametrize(
    ("questions", "value"),
    [(1, 1.0), (2, 0.95), (11, 0.5), (20, 0.05), (21, 0.0), (30, 0.0)],
)
def test_found_falls_with_the_questions_it_took(questions: int, value: float) -> None:
    asked = [
        "guess",
        *["Is it alive?", "No."] * (questions - 1),
        "Is it a piano?",
        "Yes.",
        "Good, the piano!",
    ]
    found = measure("found", talk(*asked), PIANO)
    assert found.value == pytest.approx(value) and found.extracted == "Is it a piano?"


def test_what_the_user_says_finds_nothing() -> None:
    assert measure("found", talk("a piano?", "Is it alive?"), PIANO) == Measured(0.0, extracted="")


# follow-up likelihood


def test_follow_up_likelihood_by_hand() -> None:
    def logs(request: Request) -> list[float]:  # ln 0.5 and ln 0.25 a word
        return [
            math.log(p) * len(t.split())
            for t, p in zip(request.continuations, [0.5] * 4 + [0.25] * 4, strict=True)
        ]

    engine = ScriptedEngine(score=logs)
    found = measure("follow_up_likelihood", talk("a card please", "Who is it for?"), HALF, engine)
    assert found.value == pytest.approx(4 * 0.5 / (4 * 0.5 + 4 * 0.25))
    assert found.judgements["follow_up_likelihood"] == pytest.approx(
        [math.log(0.5)] * 4 + [math.log(0.25)] * 4
    )
    assert "it is a half" in engine.requests[0].prompt


def test_follow_up_likelihood_is_half_where_nothing_tells_them_apart() -> None:
    def logs(request: Request) -> list[float]:
        return [-1000.0 * len(text.split()) for text in request.continuations]

    assert measure(
        "follow_up_likelihood", talk("a", "b"), HALF, ScriptedEngine(score=logs)
    ).value == pytest.approx(0.5)


def test_satisfied_and_dissatisfied_follow_ups_are_as_long() -> None:
    words = [
        sum(len(text.split()) for text in texts) for texts in (follow_up.SATISFIED, follow_up.DISSATISFIED)
    ]
    assert len(follow_up.SATISFIED) == len(follow_up.DISSATISFIED) and abs(words[0] - words[1]) <= 2


# what it took


def test_effort() -> None:
    rollout = talk("one two three", "four five", "six", "seven eight nine ten")
    assert measure("tokens_read", rollout, HALF) == Measured(6.0)
    assert measure("tokens_typed", rollout, HALF) == Measured(4.0)
    assert measure("turns", rollout, HALF) == Measured(4.0)


# one's own


def own(tmp_path: Path, source: str, name: str = "mine") -> Measured:
    path = tmp_path / "metrics.py"
    path.write_text(source, "utf-8")
    cast: Any = None
    return asyncio.run(function.measure(talk("a", "b c"), HALF, cast, name=f"{path}:{name}"))


def test_a_function_of_one_s_own(tmp_path: Path) -> None:
    plain = "def mine(messages, task):\n    return len(messages[-1]['content']) + len(task.details)"
    assert own(tmp_path, plain) == Measured(4.0)
    assert own(tmp_path, plain.replace("+", "-")) == Measured(2.0)  # the file was changed
    assert own(tmp_path, "async def mine(messages, task): return messages[0]['role'] == 'user'") == Measured(
        1.0
    )
    assert own(tmp_path, "import numpy\ndef mine(messages, task): return numpy.float32(0.5)") == Measured(0.5)


def test_its_file_is_run_once(tmp_path: Path) -> None:
    counted = "from pathlib import Path\nlog = Path(__file__).with_suffix('.log')\n"
    counted += "log.write_text(log.read_text() + '.' if log.exists() else '.')\ndef mine(m, t): return 1"
    for _ in range(3):
        own(tmp_path, counted)
    assert (tmp_path / "metrics.log").read_text() == "."


@pytest.mark.parametrize(
    "value", ["None", "'0.5'", "float('nan')", "float('inf')", "1 / 0", "task.nothing", "[1]"]
)
def test_what_is_no_number_is_a_failure(tmp_path: Path, value: str) -> None:
    with pytest.raises(Failure, match=r"^metric mine (failed with|gave no number: )"):
        own(tmp_path, f"def mine(messages, task): return {value}")


@pytest.mark.parametrize("source", ["def other(m, t): return 1", "mine = 3", "def mine(", "1 / 0"])
def test_a_function_that_cannot_be_loaded_is_an_error_of_the_recipe(tmp_path: Path, source: str) -> None:
    with pytest.raises(RecipeError, match=r"metrics\.py"):
        own(tmp_path, source)


def test_a_file_that_is_not_there_is_one_too(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.py"):
        function.load(f"{tmp_path}/none.py:mine")


def test_its_fingerprint_is_that_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.py"
    path.write_text("def mine(m, t): return 1", "utf-8")
    first = function.fingerprint(f"{path}:mine")
    assert first == function.fingerprint(f"{path}:mine")
    path.write_text("def mine(m, t): return 2", "utf-8")
    assert first != function.fingerprint(f"{path}:mine")


def test_a_metric_without_anything_to_compare_with_is_refused() -> None:
    bare, whole = Task("bare", "x", ("y",)), Task("whole", "x", ("y",), reference="z")
    given = {"name": "x", "models": {"policy": "p"}, "tasks": {"path": "t.jsonl"}}
    for name in ("accuracy", "bleu", "found"):
        recipe = Recipe.model_validate(given | {"reward": {"weights": {name: 1}}})
        assert measures(recipe, [whole]) == {name: ""}
        with pytest.raises(TaskError, match=f"{name} has nothing to compare with in the task bare"):
            measures(recipe, [whole, bare])
    recipe = Recipe.model_validate(given | {"reward": {"weights": {"pass_rate": 1}}})
    with pytest.raises(TaskError, match="pass_rate"):
        measures(recipe, [whole])
