"""What a conversation produced in the end, taken out of the assistant's messages by rule."""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from minicollab.schema import Message, Task

# answers

# Money is no maths: what begins with a digit ends without a blank before the dollar, or a digit after it.
DOLLARS = r"\$+(?P<dollars>(?!\d)(?:\\.|[^$\\])+|(?:\\.|[^$\\])+(?<!\s))\$+(?!\d)"
_MATHS = DOLLARS + r"|\\\((?P<round>.+?)\\\)|\\\[(?P<square>.+?)\\\]"
_STATED = re.compile(
    r"(?:\banswer\b(?:[ \t]+[\w']+){0,4}?[ \t]*\**(?:\bis\b|[:=])|####)[\s:*]*"
    rf"(?:{_MATHS}|(?P<plain>[^\n]+?)(?=[.!]?\**(?:\s*$|\n|[.!]\s)))",
    re.IGNORECASE | re.DOTALL,
)
_EQUALS = re.compile(r"=\s*(?P<plain>[^=\n]+?)[\s$.\])\\*]*$")
_WRAPPING = " \t\n*\"'`"
_ABOUT = re.compile(r"^(approximately|about|roughly)\s+", re.IGNORECASE)
_FIGURES = re.compile(r"[\d\\^√π∞]")


def final_answer(messages: Iterable[Message]) -> str | None:
    r"""The answer as it stands in the last message that states one: in its last \boxed{}, or after
    its last "answer is" (or "answer:", or "####"). One in words ("glad the answer is clear") counts
    where no message has one with figures. Where none states any: what the last message ends on being
    equal to. None if there is nothing of the kind."""
    said = _said(messages)
    for figures in (True, False):
        for text in reversed(said):
            if answer := boxed(text) or _last(_STATED, text, figures):
                return answer
    return _last(_EQUALS, said[-1]) if said else None


def boxed(text: str) -> str:
    r"""What the last complete \boxed{} holds, whose braces are balanced, or else the last \boxed that
    has no braces, as MATH writes a digit now and then; "" without one."""
    for start in reversed([match.end() for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]):
        depth = 1
        for mark in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):  # an escaped brace is none
            depth += {"{": 1, "}": -1}.get(mark[0], 0)
            if depth == 0:
                return text[start : start + mark.start()].strip()
    bare = re.findall(r"\\(?:boxed|fbox)\s+([^\s$.,;{}]+)", text)
    return bare[-1] if bare else ""


def _last(pattern: re.Pattern[str], text: str, figures: bool = False) -> str | None:
    """The last answer that the pattern finds; with `figures` no plain words."""
    found = []
    for match in pattern.finditer(text):
        answer = str(match[match.lastgroup or 0]).strip(_WRAPPING)
        if match.lastgroup == "plain":
            answer = _ABOUT.sub("", answer.replace("**", ""))
            if figures and not _FIGURES.search(answer):
                continue
        found.append(answer)
    return next(filter(None, reversed(found)), None)


# code

_FENCE = re.compile(
    r"^[ \t]*```[ \t]*(?P<language>\S*)[^\n]*\n(?P<code>.*?)^[ \t]*```", re.DOTALL | re.MULTILINE
)
_PYTHON = ("", "python", "py", "python3")


def final_code(messages: Iterable[Message], entry_point: str) -> str | None:
    """The last complete code block that defines the function `entry_point`, with what the other
    blocks change in it: a later one replaces the functions and classes that it defines anew, and
    what is used but not defined comes from an earlier one. A reply without a block that is Python
    as a whole is a block, too. None if no block defines it."""
    blocks = [(code, tree) for text in _said(messages) for code in _blocks(text) if (tree := parsed(code))]
    at = [i for i, (_, tree) in enumerate(blocks) if entry_point in _functions(tree.body)]
    if not at:
        return None
    code, base = blocks[at[-1]]
    body = list(base.body)
    for _, later in blocks[at[-1] + 1 :]:
        body = _edited(body, later.body)
    body = _completed(body, [statement for _, earlier in blocks[: at[-1]] for statement in earlier.body])
    try:
        return code if body == base.body else ast.unparse(ast.Module(body, []))
    except RecursionError:  # an expression of a thousand parts
        return code


def _blocks(text: str) -> list[str]:
    if "```" not in text:
        return [text]
    fenced = (match for match in _FENCE.finditer(text) if match["language"].lower() in _PYTHON)
    return [_outdented(match["code"]) for match in fenced]


def _outdented(code: str) -> str:
    """A block in a list is indented as a whole."""
    return textwrap.dedent(code) if code[:1] in (" ", "\t") else code


def parsed(code: str) -> ast.Module | None:
    """None if it is no Python."""
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _functions(body: Iterable[ast.stmt]) -> dict[str, ast.stmt]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {statement.name: statement for statement in body if isinstance(statement, kinds)}


def _edited(body: list[ast.stmt], edit: list[ast.stmt]) -> list[ast.stmt]:
    """`body` with the functions that `edit` defines anew in their old places, and what these need."""
    anew = _functions(edit)
    old = _functions(body)
    if not anew.keys() & old.keys():
        return body
    places = {old[name]: anew[name] for name in anew.keys() & old.keys()}
    return _completed([places.get(statement, statement) for statement in body], edit)


def _completed(body: list[ast.stmt], other: list[ast.stmt]) -> list[ast.stmt]:
    """`body` after those imports, definitions and constants of `other` that it uses and lacks, the
    last of each name."""
    used = {node.id for node in _nodes(body) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    lacking = used - _bound(body) - set(dir(builtins))
    last = {name: statement for statement in other for name in _defined(statement)}
    needed = [last[name] for name in lacking & last.keys()]
    added = [statement for statement in other if statement in needed]
    return _completed(added + body, other) if added else body


def _defined(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign):
        return _bound([statement])
    return set(_functions([statement]))


def _bound(body: list[ast.stmt]) -> set[str]:
    names = set()
    for node in _nodes(body):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.alias(name=name, asname=other):
                names.add(other or name.partition(".")[0])
    return names


def _nodes(body: list[ast.stmt]) -> Iterator[ast.AST]:
    return (node for statement in body for node in ast.walk(statement))


# documents

_LEAD_IN = re.compile(
    r"(sure|certainly|of course|absolutely|okay|here['\u2019]?s|here (is|are)|below is)\b", re.I
)
_PRESENTS = re.compile(r"\b(I|you|your|here|below|following|draft|version)\b", re.I)
_OFFER = re.compile(
    r"(let me know|please let me|feel free|i hope|hope this|would you|do you|shall i|should i|if you)\b", re.I
)
_RULE = re.compile(r"\s*([-*_=]\s*){3,}$")
_ASIDE = 40  # words that a lead-in or an offer may have
_DRAFT = 25  # words that make a draft


def final_document(messages: Iterable[Message]) -> str | None:
    """The last full draft: of the messages the last that has at least 25 words and half as many as
    the longest, without its lead-in ("Sure, here is ...:"), without the question or offer after it.
    None if no message is as long."""
    drafts = [_draft(text) for text in _said(messages)]
    longest = max((len(draft.split()) for draft in drafts), default=0)
    full = [draft for draft in drafts if len(draft.split()) >= max(_DRAFT, longest / 2)]
    return full[-1] if full else None


def _draft(text: str) -> str:
    blocks = [match["code"] for match in _FENCE.finditer(text)]
    if blocks and len(max(blocks, key=len)) > len(text) / 2:
        text = max(blocks, key=len)
    lines = text.strip().split("\n")
    while lines and (_nothing(lines[0]) or _leads_in(lines[0])):
        lines.pop(0)
    while lines and (_nothing(lines[-1]) or _offers(lines[-1])):
        lines.pop()
    return "\n".join(lines)


def _nothing(line: str) -> bool:
    return not line.strip() or bool(_RULE.match(line))


def _leads_in(line: str) -> bool:
    presents = line.rstrip(" *").endswith(":") and _PRESENTS.search(line)
    return len(line.split()) <= _ASIDE and bool(presents or _LEAD_IN.match(line.strip()))


def _offers(line: str) -> bool:
    asks = line.rstrip(" *").endswith("?") and re.search(r"\b(you|your|I)\b", line)
    return len(line.split()) <= _ASIDE and bool(asks or _OFFER.match(line.strip()))


# things


def names(text: str, task: Task) -> bool:
    """Whether the text names the thing that the task hides, its `reference` or one of the `aliases`
    in its metadata: whole words, in upper or lower case, one or several."""
    things = (task.reference, *task.metadata.get("aliases", ()))
    return any(re.search(pattern, text, re.IGNORECASE) for thing in things for pattern in _patterns(thing))


def _patterns(thing: str) -> Iterator[str]:
    words = re.sub(r"^(a|an|the)\s+", "", thing.strip(), flags=re.IGNORECASE)
    if words:
        one = r"\W+".join(map(re.escape, words.split()))
        many = one[:-1] + "(ys?|ies)" if one.lower().endswith("y") else one + "(s|es)?"
        yield rf"(?<!\w){many}(?!\w)"


def _said(messages: Iterable[Message]) -> Sequence[str]:
    return [message.content for message in messages if message.role == "assistant"]
