"""What a conversation produced in the end, by rule."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from minicollab.extraction import boxed, final_answer, final_code, final_document, names
from minicollab.schema import Message, Task


def replies(*texts: str) -> list[Message]:
    """A conversation in which the assistant says these."""
    user = Message("user", r"The answer is \boxed{99}. ```python" + "\ndef f(): return 99\n```")
    return [message for text in texts for message in (user, Message("assistant", text))]


@pytest.mark.parametrize(
    ("text", "held"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{1} and then $\boxed{ \frac{1}{2} }$.", r"\frac{1}{2}"),
        (r"\fbox{7}", "7"),
        (r"\boxed {\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\begin{pmatrix} 1 \\{2} \end{pmatrix}}", r"\begin{pmatrix} 1 \\{2} \end{pmatrix}"),
        (r"\boxed{4} and \boxed{\frac{1}{2", "4"),
        ("no box", ""),
    ],
)
def test_boxed(text: str, held: str) -> None:
    assert boxed(text) == held


@pytest.mark.parametrize(
    ("texts", "answer"),
    [
        ([r"\boxed{5}"], "5"),
        ([r"\boxed{5}", "Sorry, I was wrong: the answer is 7."], "7"),
        (["The answer is 7.", r"No, $x = \boxed{5}$.", "You're welcome!"], "5"),
        (["The answer is 3.5. Anything else?"], "3.5"),
        (["The final answer is: **12**"], "12"),
        (["**Answer:** 12 apples"], "12 apples"),
        (["**Answer**: 12"], "12"),
        (["So the answer to your question is $\\frac{1}{2}$, as we saw."], r"\frac{1}{2}"),
        (["The answer is\n\\[\n x^2 + 1 \n\\]\nas shown"], "x^2 + 1"),
        (["answer = 4"], "4"),
        (["First 2 + 3 = 5.\nThen 5 * 2 = 10."], "10"),
        (["We get $x = 3$."], "3"),
        (["Add them. #### 42"], "42"),
        (["The answer is 6. Let me check: 2 * 3 = 6, and 6 - 1 = 5"], "6"),
        (["What do you want to know?"], None),
        (["I cannot answer that."], None),
        ([], None),
    ],
)
def test_final_answer(texts: list[str], answer: str | None) -> None:
    assert final_answer(replies(*texts)) == answer


def block(code: str, language: str = "python") -> str:
    return f"Here you are:\n```{language}\n{code}\n```\nTell me if it works."


WHOLE = (
    "import math\n\ndef helper(x):\n    return x + 1\n\ndef f(x):\n    return helper(x) * math.pi  # round\n"
)


def run(code: str | None) -> dict[str, object]:
    assert code is not None
    space: dict[str, object] = {}
    exec(code, space)
    return space


def test_the_last_code_block_counts_as_it_stands() -> None:
    assert final_code(replies(block("def f(x): return 0"), block(WHOLE)), "f") == WHOLE + "\n"
    assert final_code(replies(block(WHOLE), "Glad to hear that!"), "f") == WHOLE + "\n"


def test_a_later_edit_replaces_what_it_defines_anew() -> None:
    edit = "from math import floor\n\ndef helper(x):\n    return floor(x) + 10"
    code = final_code(replies(block(WHOLE), block(edit)), "f")
    assert run(code)["f"](1.5) == pytest.approx(11 * 3.141592653589793)  # type: ignore[operator]
    assert code is not None and "x + 1" not in code


def test_what_the_last_block_lacks_comes_from_an_earlier_one() -> None:
    parts = block("def helper(x):\n    return STEP + x\n\nSTEP = 5"), block("STEP = 7\nprint(STEP)")
    code = final_code(replies(*parts, block("def f(x):\n    return helper(x)")), "f")
    assert run(code)["f"](1) == 8  # type: ignore[operator]
    assert code is not None and "print" not in code


def test_an_example_of_use_after_it_changes_nothing() -> None:
    use = block("x = f(1)\nprint(x)") + block("pip install numpy", "bash") + block("42", "")
    assert final_code(replies(block(WHOLE), use), "f") == WHOLE + "\n"


def test_what_is_not_complete_is_no_code() -> None:
    cut = "```python\ndef f(x):\n    return 1"
    assert final_code(replies(cut), "f") is None
    assert final_code(replies(block(WHOLE), cut), "f") == WHOLE + "\n"
    assert final_code(replies(block("def f(x:\n  return")), "f") is None
    assert final_code(replies(block("def g(x): return 1")), "f") is None
    assert final_code(replies(block("def f(x): return 1", "javascript")), "f") is None
    assert final_code(replies("What should it do?"), "f") is None


def test_a_reply_that_is_code_as_a_whole_counts() -> None:
    assert final_code(replies("def f(x):\n    return 1"), "f") == "def f(x):\n    return 1"
    assert final_code(replies("Sure: def f(x): return 1, as you wished"), "f") is None


LETTER = (
    "Dear Anna,\n\nthank you for the lovely evening with all of you at the lake. We still talk about "
    "the boat, the rain and the cake that the dog ate. Will you visit us in the spring?\n\nYours, Tom"
)


@pytest.mark.parametrize(
    "text",
    [
        LETTER,
        f"Sure! Here is the letter:\n\n{LETTER}\n\nWould you like me to change anything?",
        f"Here's a draft.\n\n---\n\n{LETTER}\n\n---\n\nLet me know if you want it shorter!",
        f"Certainly.\n```markdown\n{LETTER}\n```\nI hope this helps. Is that what you meant?",
        f"**I wrote it for your friend:**\n{LETTER}\n\nShould I send it? What do you think?",
    ],
)
def test_a_document_stands_without_what_was_said_around_it(text: str) -> None:
    assert final_document(replies(text)) == LETTER
    assert final_document(replies(text, "You're welcome! Have a nice day.")) == LETTER


def test_the_last_full_draft_counts() -> None:
    longer = LETTER + "\n\nPS: " + "the dog is well again and sends his love " * 3
    assert final_document(replies(LETTER, longer.strip())) == longer.strip()
    assert final_document(replies(longer.strip(), LETTER)) == LETTER
    assert final_document(replies(LETTER * 3, "Only this line is new: " + "come soon " * 14)) == LETTER * 3
    assert final_document(replies("Who is the letter for, and what should it say?")) is None
    assert final_document([]) is None


def real(repo: Path, name: str) -> list[dict[str, Any]]:
    path = repo.parent / "shared" / "data" / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{name} is not here")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_real_documents_come_out_whole(repo: Path) -> None:
    around = "Sure, here is your text:\n\n{}\n\nWould you like me to change anything?"
    for row in real(repo, "documents_120"):
        text = row["text"].strip()
        assert final_document(replies(text)) == final_document(replies(around.replace("{}", text))) == text


def test_real_programs_come_out_whole(repo: Path) -> None:
    for row in real(repo, "bigcodebench_700")[::10]:
        program = row["code_prompt"] + row["canonical_solution"] + "\n"
        fenced = f"Here it is:\n```python\n{program}```\nDoes it work?"
        assert final_code(replies("How?", fenced, "Good!"), row["entry_point"]) == program


def test_real_answers_are_found(repo: Path) -> None:
    for row in real(repo, "gsm8k_train_1000"):
        assert final_answer(replies(row["answer"])) == row["answer"].rpartition("####")[2].strip()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Is it a grand piano?", True),
        ("GRAND PIANOS!", True),
        ("Is it a grand-piano?", True),
        ("Is it a piano?", False),
        ("Is it a grand pianoforte?", False),
        ("Is it a berry, or some berries?", True),
        ("strawberries", False),
        ("Are you thinking of donkeys?", True),
        ("monkeys", False),
        ("Is it (c++)?", True),
        ("", False),
    ],
)
def test_names_of_a_thing(text: str, named: bool) -> None:
    task = Task("t", "?", (), reference="a grand piano", metadata={"aliases": ["Berry", "C++", "a donkey"]})
    assert names(text, task) == named


def test_a_task_without_a_thing_is_never_named() -> None:
    assert not names("anything at all", Task("t", "?", ("x",)))


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (["The answer is $18. She makes $18 every day."], "$18"),
        (["The answer is $18.\n\nCheck: $9 x 2 = $18."], "$18"),
        ([r"The answer is $\$18$."], r"\$18"),
        (["The answer is $x = 5$."], "x = 5"),
        (["The answer is $ 5 $."], "5"),
        (["The answer is **18** dollars"], "18 dollars"),
        (["The answer is approximately 3.14."], "3.14"),
        ([r"\boxed{5}", "You're welcome! I'm glad the answer is clear now."], "5"),
        (["The answer is 7.", "Do you know what the answer is?"], "7"),
        (["The answer is Evelyn."], "Evelyn"),
        ([r"So it is $\boxed 9$."], "9"),
    ],
)
def test_money_thanks_and_emphasis_are_no_part_of_an_answer(said: list[str], answer: str) -> None:
    assert final_answer([Message("assistant", text) for text in said]) == answer


def test_a_program_in_a_list_is_indented() -> None:
    text = "1. Here it is:\n\n   ```python\n   def f(x):\n       return x\n   ```\n"
    assert final_code([Message("assistant", text)], "f") == "def f(x):\n    return x\n"
