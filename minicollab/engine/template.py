"""A GGUF's own chat template, rendered so that text from people never becomes control text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import date
from functools import cached_property
from itertools import groupby
from typing import Any

from minicollab import prompts
from minicollab.engine.base import Prompt, Segment
from minicollab.errors import ModelError
from minicollab.schema import Message

_SLOT = re.compile("\ue000(\\d+)\ue001")
# A prompt must not change with the date. This is the one that Llama 3's templates fall back on.
_TODAY = date(2024, 7, 26)


class ChatTemplate:
    """Renders as `transformers` does (sandboxed Jinja), with numbered slots in place of what the
    messages say; the slots are then filled with segments that are not control text.

    With `add_bos` the prompt begins with `bos`, whether the template prints it or not.
    """

    def __init__(self, source: str, bos: str, eos: str, add_bos: bool = False):
        self.source, self.bos, self.eos, self.add_bos = source, bos, eos, add_bos

    def render(self, messages: Iterable[Message], reply: str = "") -> Prompt:
        """The messages, opened for the assistant, whose answer begins with `reply`.

        ModelError if the template refuses the conversation, or changes what a message says in a
        way that cannot be followed.
        """
        rows = [m.as_dict() for m in messages]
        expected = self._jinja(rows)
        slots = _Slots(self._sought)
        marked = [{**row, "content": slots.mark(row["content"])} for row in rows]
        segments = slots.fill(self._jinja(marked))
        if "".join(s.text for s in segments) != expected:
            raise ModelError(
                "the model's chat template leaves out or rewrites a message of this conversation",
                "Use another GGUF, or the transcript styles in the recipe.",
            )
        first = next(iter(segments), Segment(""))
        if self.add_bos and not (first.control and first.text.startswith(self.bos)):
            segments.insert(0, Segment(self.bos, control=True))
        return tuple(s for s in [*segments, Segment(reply)] if s.text)

    def _jinja(self, messages: list[dict[str, str]]) -> str:
        try:
            text: str = self._compiled.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                bos_token=self.bos,
                eos_token=self.eos,
                **prompts.TEMPLATE,
            )
            return text
        except Exception as error:  # a template is a program, and a stranger's
            raise ModelError(
                f"the model's chat template cannot render this conversation: {error}",
                "Use another GGUF, or the transcript styles in the recipe.",
            ) from None

    @cached_property
    def _compiled(self) -> Any:
        from jinja2 import TemplateError
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """{% generation %} marks what trainers learn from; here it means nothing."""

            tags = {"generation"}  # noqa: RUF012

            def parse(self, parser: Any) -> Any:
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        def refuse(message: str) -> None:
            raise TemplateError(message)

        def tojson(value: Any, ensure_ascii: bool = False, **layout: Any) -> str:
            return json.dumps(value, ensure_ascii=ensure_ascii, **layout)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        environment.filters["tojson"] = tojson
        environment.globals |= {"raise_exception": refuse, "strftime_now": _TODAY.strftime}
        return environment.from_string(self.source)

    @cached_property
    def _sought(self) -> re.Pattern[str]:
        """Finds what the template looks for in messages, as in `'</think>' in message.content` or
        `message.content.split('</think>')`, with the blanks around it."""
        from jinja2 import nodes

        tree = self._compiled.environment.parse(self.source)
        found = [c.expr for c in tree.find_all(nodes.Compare) if c.ops[0].op in ("in", "notin")]
        for call in tree.find_all(nodes.Call):
            if isinstance(call.node, nodes.Getattr) and call.node.attr == "split":
                found += call.args
        texts = {n.value.strip() for n in found if isinstance(n, nodes.Const) and isinstance(n.value, str)}
        any_of = "|".join(map(re.escape, sorted(texts - {""}, key=len, reverse=True))) or "(?!)"
        # Looking back spares a long run of blanks to be tried from each of them.
        return re.compile(rf"((?<!\s)(?:\s*(?:{any_of}))+\s*)")


class _Slots:
    """Numbered slots for what one conversation says.

    Blanks around a message stay outside its slot, for templates that trim. What a template looks
    for stays outside too, between two slots of its message: where it is still there in the
    rendering, it is what the message says, and no control text.
    """

    def __init__(self, sought: re.Pattern[str]):
        self._sought = sought
        self._texts: list[str] = []
        self._gaps: list[str | None] = []  # what stands between this slot and the next of its message
        self._owners: list[int] = []  # which message a slot is of

    def mark(self, content: str) -> str:
        """`content` with slots in it."""
        core = content.strip()
        if not core:
            return content
        owner = len(self._owners)
        pieces = self._sought.split(core)
        marked = ""
        for text, gap in zip(pieces[::2], [*pieces[1::2], None], strict=True):
            marked += f"\ue000{len(self._texts)}\ue001" + (gap or "")
            self._texts.append(text)
            self._gaps.append(gap)
            self._owners.append(owner)
        start = len(content) - len(content.lstrip())
        return content[:start] + marked + content[start + len(core) :]

    def fill(self, rendered: str) -> list[Segment]:
        """The rendering with its slots filled; empty if a message is not in it."""
        pieces = _SLOT.split(rendered)
        numbers = [int(n) for n in pieces[1::2]]
        if {self._owners[n] for n in numbers if n < len(self._owners)} != set(self._owners):
            return []
        parts = [(pieces[0], True)]
        for n, after, text in zip(numbers, [*numbers[1:], -1][: len(numbers)], pieces[2::2], strict=True):
            parts.append((self._texts[n] if n < len(self._texts) else "", False))
            parts.append((text, not (after == n + 1 and text == self._gaps[n])))
        parts = [p for p in parts if p[0]]
        return [
            Segment("".join(text for text, _ in run), control)
            for control, run in groupby(parts, key=lambda p: p[1])
        ]
