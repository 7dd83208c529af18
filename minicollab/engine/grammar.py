"""JSON schema → GBNF, llama.cpp's notation for grammars.

Every answer that keeps to the grammar satisfies the schema: what a grammar cannot hold, as bounds
of numbers, is refused. (The converter of llama-cpp-python passes over it, and over more: its
strings may have raw line breaks in them, its constants lose their backslashes.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from minicollab.errors import RecipeError

_NOTES = {"$schema", "$id", "$comment", "title", "description", "default", "examples"}
_KEYWORDS = {
    "anyOf": {"anyOf"},
    "const": {"type", "const"},
    "enum": {"type", "enum"},
    "object": {"type", "properties", "required", "additionalProperties"},
    "array": {"type", "items", "minItems", "maxItems"},
    "string": {"type", "minLength", "maxLength"},
    "integer": {"type"},
    "number": {"type"},
    "boolean": {"type"},
    "null": {"type"},
}
_TYPES = list(_KEYWORDS)[3:]
_ALL = set().union(*_KEYWORDS.values())

# Numbers are short enough for a float. No \u, which could spell half a character.
_BASIC = r"""
space ::= " "?
char ::= [^"\\\x7F\x00-\x1F] | "\\" ["\\/bfnrt]
digits ::= "0" | [1-9] [0-9]{0,14}
string ::= "\"" char* "\""
integer ::= "-"? digits
number ::= "-"? digits ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?
boolean ::= "true" | "false"
null ::= "null"
pair ::= string space ":" space value
object ::= "{" space (pair ("," space pair)* space)? "}"
array ::= "[" space (value ("," space value)* space)? "]"
value ::= object | array | string | number | boolean | null
"""


def gbnf(schema: Mapping[str, Any]) -> str:
    """A GBNF grammar, start symbol `root`, whose every text is JSON that satisfies `schema`.

    Required properties come first, then the optional ones, each in the schema's order; others
    never. RecipeError names what is no JSON schema or cannot be kept to, and what to write.
    """
    try:
        plain = json.dumps(schema, allow_nan=False, ensure_ascii=False).encode()
        converter = _Converter()
        root = converter.rule(json.loads(plain), "the JSON schema")
    except (TypeError, ValueError, RecursionError) as error:
        _refuse(f"the JSON schema is no JSON: {error}", "Write what json.dumps takes.")
    return "\n".join([f"root ::= {root}", *converter.rules, _BASIC.strip()])


def _refuse(what: str, remedy: str) -> NoReturn:
    raise RecipeError(what, remedy)


class _Converter:
    """Collects a rule for each part of a schema. Methods take the part and what to call it."""

    def __init__(self) -> None:
        self.rules: list[str] = []

    def rule(self, schema: Any, where: str) -> str:
        """The name of the rule for `schema`."""
        if not isinstance(schema, dict):
            _refuse(
                f"{where} is no JSON schema, but {type(schema).__name__}",
                "Write an object such as {type: string}.",
            )
        asked = schema.keys() - _NOTES
        if not asked:
            return "value"
        kind = schema.get("type")
        form = next((f for f in ("anyOf", "const", "enum") if f in asked), kind if kind in _TYPES else "")
        beside = f" beside `{form}`" if form in _KEYWORDS else ""
        for keyword in sorted(asked - _KEYWORDS.get(form, _ALL)):
            _refuse(
                f"`{keyword}` in {where} cannot be enforced{beside}",
                f"Leave `{keyword}` out; list what is allowed with `enum` (values) or `anyOf` (schemas).",
            )
        if form not in _KEYWORDS:
            _refuse(
                f"{where} has no type that is known",
                f"Give it one type ({', '.join(_TYPES)}), or several with `anyOf`.",
            )
        if asked == {"type"}:
            return form
        text = getattr(self, f"_{form.lower()}")(schema, where)
        self.rules.append(f"r{len(self.rules)} ::= {text}")
        return f"r{len(self.rules) - 1}"

    def _anyof(self, schema: dict[str, Any], where: str) -> str:
        options = _filled_list(schema, "anyOf", where)
        return " | ".join(self.rule(o, f"anyOf[{i}] of {where}") for i, o in enumerate(options))

    def _enum(self, schema: dict[str, Any], where: str) -> str:
        values = [
            v for v in _filled_list(schema, "enum", where) if "type" not in schema or _is(v, schema["type"])
        ]
        if not values:
            _refuse(f"no value in {where} has its type", "Leave `type` out where there is `enum` or `const`.")
        return " | ".join(map(_literal, values))

    def _const(self, schema: dict[str, Any], where: str) -> str:
        return self._enum({**schema, "enum": [schema["const"]]}, where)

    def _string(self, schema: dict[str, Any], where: str) -> str:
        least, most = _bounds(schema, "Length", where)
        return rf'"\"" char{_times(least, most)} "\""'

    def _array(self, schema: dict[str, Any], where: str) -> str:
        item = self.rule(schema.get("items", {}), f"items of {where}")
        least, most = _bounds(schema, "Items", where)
        if most == 0:
            return '"[" space "]"'
        more = _times(max(least - 1, 0), None if most is None else most - 1)
        items = f'({item} ("," space {item}){more} space)'
        return f'"[" space {items}{"" if least else "?"} "]"'

    def _object(self, schema: dict[str, Any], where: str) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            _refuse(
                f"{where} has `properties` or `required` of the wrong kind", "Write an object and a list."
            )
        for name in required:
            if name not in properties:
                _refuse(f"{where} requires {name!r}, which it does not have", "Add it to `properties`.")
        if schema.get("additionalProperties", False) is not False:
            _refuse(
                f"`additionalProperties` in {where} cannot be enforced",
                "Write `additionalProperties: false`.",
            )
        pairs = {
            name: f'{_literal(name)} space ":" space {self.rule(part, f"{name} of {where}")}'
            for name, part in properties.items()
        }
        always = ' "," space '.join(pairs[name] for name in properties if name in required)
        others = [pair for name, pair in pairs.items() if name not in required]
        if always:
            inside = " ".join([always, *map(_may_follow, others)])
        else:  # the first of those that are there has no comma before it
            starts = (" ".join([o, *map(_may_follow, others[i + 1 :])]) for i, o in enumerate(others))
            inside = f"({' | '.join(starts)})?" if others else ""
        return f'"{{" space {inside} space "}}"'


def _may_follow(pair: str) -> str:
    return f'("," space {pair})?'


def _literal(value: Any) -> str:
    """The JSON of `value` as a GBNF string."""
    text = json.dumps(value, ensure_ascii=False)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _times(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"


def _is(value: Any, kind: Any) -> bool:
    """Whether `value` is of this `type` of a schema, or of one of these."""
    if isinstance(kind, list):
        return any(_is(value, k) for k in kind)
    if isinstance(value, bool):
        return kind == "boolean"
    of_type: dict[str, Any] = {
        "object": dict, "array": list, "string": str, "integer": int, "number": int | float,
        "null": type(None),
    }  # fmt: skip
    return isinstance(value, of_type.get(kind, ()))


def _filled_list(schema: dict[str, Any], keyword: str, where: str) -> list[Any]:
    values = schema[keyword]
    if not isinstance(values, list) or not values:
        _refuse(
            f"`{keyword}` in {where} is no list with something in it",
            f"List what may be said in `{keyword}`.",
        )
    return values


def _bounds(schema: dict[str, Any], of: str, where: str) -> tuple[int, int | None]:
    least, most = schema.get(f"min{of}", 0), schema.get(f"max{of}")
    if type(least) is not int or least < 0 or not (most is None or (type(most) is int and most >= least)):
        _refuse(
            f"`min{of}` and `max{of}` in {where} cannot both hold",
            "Write two whole numbers, the smaller first.",
        )
    return least, most
