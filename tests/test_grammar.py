"""JSON schemas as grammars: random weights, held by llama.cpp's own grammar sampler."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from tiny_gguf import tiny

from minicollab import recipe
from minicollab.engine.base import Completion, Sampling, Segment
from minicollab.engine.grammar import gbnf
from minicollab.engine.llama import LlamaEngine
from minicollab.errors import RecipeError
from minicollab.judge import _VERDICT

pytest.importorskip("llama_cpp")

WORD = {"type": "string", "maxLength": 5}
DIGIT = {"type": "integer", "enum": [1, 2, 3]}
NESTED = {
    "type": "object",
    "properties": {
        "list": {"type": "array", "items": DIGIT, "minItems": 1, "maxItems": 2},
        "inner": {"type": "object", "properties": {'a "b"\\': WORD}, "required": ['a "b"\\']},
    },
    "required": ["inner", "list"],
    "additionalProperties": False,
}
SOME = {"type": "object", "properties": {"a": DIGIT, "b": WORD, "c": {"type": "null"}}, "required": ["b"]}
ODD = ['say "no"', "back\\slash", "line\nbreak", "naïve ☃ 👩", "\0\x7f", {"a": [1, "\\n"]}, -1.5, None, True]


def is_word(value: Any, least: int = 0, most: int = 5) -> bool:
    return isinstance(value, str) and least <= len(value) <= most


def is_nested(value: Any) -> bool:
    inner, numbers = value["inner"], value["list"]
    fits = len(value) == 2 and inner.keys() == {'a "b"\\'} and is_word(inner['a "b"\\'])
    return fits and 1 <= len(numbers) <= 2 and set(numbers) <= {1, 2, 3}


def is_some(value: Any) -> bool:
    fits = value.keys() <= {"a", "b", "c"} and is_word(value["b"])
    return fits and value.get("a", 1) in (1, 2, 3) and value.get("c") is None


CASES: dict[str, tuple[dict[str, Any], Callable[[Any], bool]]] = {
    "enum": ({"enum": ODD}, lambda v: v in ODD),
    "enum of a type": ({"type": ["string", "null"], "enum": ["a", None, 3]}, lambda v: v in ("a", None)),
    "const": ({"const": "a\\n\"b\"\n☃"}, lambda v: v == "a\\n\"b\"\n☃"),
    "integer": ({"type": "integer"}, lambda v: type(v) is int),
    "number": ({"type": "number"}, lambda v: type(v) in (int, float) and abs(v) < float("inf")),
    "boolean": ({"type": "boolean"}, lambda v: type(v) is bool),
    "null": ({"type": "null"}, lambda v: v is None),
    "maxLength": (WORD, is_word),
    "minLength": ({"type": "string", "minLength": 4, "maxLength": 6}, lambda v: is_word(v, 4, 6)),
    "array": ({"type": "array", "items": DIGIT, "maxItems": 3}, lambda v: len(v) <= 3 and {*v} <= {1, 2, 3}),
    "empty array": ({"type": "array", "maxItems": 0}, lambda v: v == []),
    "full array": (
        {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 3}, lambda v: len(v) == 3
    ),
    "nested": (NESTED, is_nested),
    "optional properties": (SOME, is_some),
    "all optional": (
        {"type": "object", "properties": {"a": DIGIT, "b": WORD}},
        lambda v: v.keys() <= {"a", "b"} and v.get("a", 1) in (1, 2, 3) and is_word(v.get("b", "")),
    ),
    "no properties": ({"type": "object", "additionalProperties": False}, lambda v: v == {}),
    "anyOf": ({"anyOf": [WORD, DIGIT, {"type": "null"}]}, lambda v: v in (1, 2, 3, None) or is_word(v)),
    "notes": ({"type": "null", "title": "Nothing", "description": "a null"}, lambda v: v is None),
}  # fmt: skip


@cache
def engine() -> LlamaEngine:
    return LlamaEngine(tiny("chatml"), "tiny", recipe.Engine(context=4096, sequences=16, threads=1))


def answers(schema: dict[str, Any], seeds: range, max_tokens: int = 400) -> list[Completion]:
    async def gather() -> list[Completion]:
        how = (Sampling(max_tokens, seed, temperature=30.0, json_schema=schema) for seed in seeds)
        return await asyncio.gather(*(engine().generate((Segment("the "),), h) for h in how))

    return asyncio.run(gather())


@pytest.mark.parametrize(("schema", "holds"), CASES.values(), ids=CASES)
def test_random_weights_keep_to_the_schema(schema: dict[str, Any], holds: Callable[[Any], bool]) -> None:
    for completion in answers(schema, range(1, 13)):
        assert completion.stop_reason == "end"
        assert holds(json.loads(completion.text)), completion.text


def test_answers_use_what_the_schema_leaves_open() -> None:
    """That the test above sees more than one answer each."""
    found = [json.loads(c.text) for c in answers(SOME, range(1, 101))]
    assert {tuple(v) for v in found} >= {("b",), ("b", "a"), ("b", "c"), ("b", "a", "c")}
    found = [json.loads(c.text) for c in answers(CASES["array"][0], range(1, 31))]
    assert {len(v) for v in found} == {0, 1, 2, 3}
    found = [json.loads(c.text) for c in answers({"enum": ODD}, range(1, 101))]
    assert {json.dumps(v) for v in found} == {json.dumps(v) for v in ODD}


@pytest.mark.parametrize("schema", [{}, {"type": "object"}, {"type": "array"}, {"type": "string"}], ids=str)
def test_what_is_left_open_is_json(schema: dict[str, Any]) -> None:
    text = json.loads(json.dumps({**schema, "title": "open"}))
    for completion in answers(text, range(1, 13), max_tokens=60):
        if completion.stop_reason == "end":
            json.loads(completion.text)
        else:  # random weights seldom end it
            assert completion.text.startswith(("{", "[", '"')) or text == {"title": "open"}


def test_a_long_list_of_long_texts_is_a_grammar_that_llama_cpp_takes() -> None:
    note = {
        "type": "object",
        "properties": {"text": {"type": "string", "maxLength": 2000}},
        "required": ["text"],
    }
    schema = {"type": "array", "items": note, "minItems": 1, "maxItems": 50}
    assert answers(schema, range(1, 3), max_tokens=20)[0].text.startswith("[")


def test_names_that_are_no_strings_are_what_json_makes_of_them() -> None:
    completion = answers(
        {"type": "object", "properties": {1: {"type": "null"}}, "required": ["1"]}, range(1, 2)
    )[0]
    assert json.loads(completion.text) == {"1": None}


def test_the_judges_own_verdict_is_taken() -> None:
    assert "reason" in gbnf(_VERDICT)


REFUSED = {
    "minimum": {"type": "integer", "minimum": 1},
    "exclusiveMaximum": {"type": "number", "exclusiveMaximum": 5},
    "multipleOf": {"type": "integer", "multipleOf": 2},
    "pattern": {"type": "string", "pattern": "^a*$"},
    "format": {"type": "string", "format": "email"},
    "uniqueItems": {"type": "array", "items": WORD, "uniqueItems": True},
    "prefixItems": {"type": "array", "prefixItems": [WORD]},
    "contains": {"type": "array", "contains": WORD},
    "minProperties": {"type": "object", "minProperties": 1},
    "patternProperties": {"type": "object", "patternProperties": {"a": WORD}},
    "additionalProperties": {"type": "object", "properties": {"a": WORD}, "additionalProperties": WORD},
    "not": {"type": "string", "not": {"const": "a"}},
    "if": {"if": WORD, "then": WORD},
    "oneOf": {"oneOf": [WORD, DIGIT]},
    "allOf": {"allOf": [WORD, DIGIT]},
    "$ref": {"$ref": "#"},
    "type": {"type": "string", "anyOf": [WORD, DIGIT]},
    "minLength": {"enum": ["a"], "minLength": 2},
    "maxItems": {"type": "string", "maxItems": 2},
}


@pytest.mark.parametrize(("keyword", "schema"), REFUSED.items(), ids=REFUSED)
def test_a_keyword_that_would_be_passed_over_is_refused_by_name(keyword: str, schema: dict[str, Any]) -> None:
    for whole in (schema, {"type": "array", "items": {"type": "object", "properties": {"x": schema}}}):
        with pytest.raises(RecipeError) as error:
            gbnf(whole)
        assert error.value.what.startswith(("`", "the JSON")) and "`" + keyword in str(error.value)
        assert whole is schema or "x of items of the JSON schema" in error.value.what
        assert "\n" not in str(error.value) and error.value.remedy


LOOP: dict[str, Any] = {"type": "array"}
LOOP["items"] = LOOP
DEEP: dict[str, Any] = {"type": "null"}
for _ in range(5000):
    DEEP = {"type": "array", "items": DEEP}


@pytest.mark.parametrize(
    "schema",
    [
        True, None, [], "string", {"type": "text"}, {"type": ["string", "null"]}, {"type": 3},
        {"type": "enum"}, {"properties": {}},
        {"enum": []}, {"enum": "ab"}, {"anyOf": []}, {"anyOf": [True]}, {"type": "array", "items": [WORD]},
        {"type": "string", "minLength": 3, "maxLength": 2}, {"type": "string", "maxLength": "5"},
        {"type": "array", "minItems": -1}, {"type": "array", "maxItems": True},
        {"type": "object", "properties": [WORD]}, {"type": "object", "required": ["a"]},
        {"type": "object", "properties": {"a": "string"}}, {"type": "string", "enum": [1, True]},
        {"const": {1, 2}}, {"const": float("nan")}, {"const": "\ud800"}, LOOP, DEEP,
    ],
    ids=range(27),
)  # fmt: skip
def test_a_bad_schema_is_one_line(schema: Any) -> None:
    with pytest.raises(RecipeError) as error:
        gbnf(schema)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
