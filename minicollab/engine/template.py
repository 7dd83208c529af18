"""A GGUF's own chat template, rendered so that text from people never becomes control text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from minicollab.engine.base import Prompt, Segment
from minicollab.errors import ModelError
from minicollab.schema import Message

_SLOT = re.compile("\ue000(\\d+)\ue001")


class ChatTemplate:
    """Renders as `transformers` does (sandboxed Jinja), with a numbered slot in place of each
    message's content; the slots are then filled with segments that are not control text."""

    def __init__(self, source: str, bos: str, eos: str):
        self.source, self.bos, self.eos = source, bos, eos

    def render(self, messages: Iterable[Message], reply: str = "") -> Prompt:
        messages = list(messages)
        marked = [{"role": m.role, "content": f"\ue000{i}\ue001"} for i, m in enumerate(messages)]
        pieces = _SLOT.split(self._jinja(marked))
        segments = []
        for position, piece in enumerate(pieces):
            if position % 2 == 0:
                segments.append(Segment(piece, control=True))
            else:
                message = messages[int(piece)]
                trimmed = message.role in self._trimmed_roles
                segments.append(Segment(message.content.strip() if trimmed else message.content))
        segments.append(Segment(reply))
        return tuple(s for s in segments if s.text)

    def _jinja(self, messages: list[dict[str, str]]) -> str:
        import jinja2

        try:
            return self._compiled.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                bos_token=self.bos,
                eos_token=self.eos,
            )
        except jinja2.TemplateError as error:
            raise ModelError(
                f"the model's chat template cannot render this conversation: {error}",
                "Use another GGUF, or the transcript styles in the recipe.",
            ) from None

    @cached_property
    def _compiled(self) -> Any:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise TemplateError(message)

        # `strftime_now` is left out on purpose: a prompt must not change with the date.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda value, **kw: json.dumps(value, ensure_ascii=False)
        environment.globals["raise_exception"] = refuse
        return environment.from_string(self.source)

    @cached_property
    def _trimmed_roles(self) -> frozenset[str]:
        """The roles whose messages the template strips of the whitespace around them."""
        probe = [{"role": r, "content": f"\t\n{r}\n\t"} for r in ("system", "user", "assistant", "user")]
        try:
            text = self._jinja(probe)
        except ModelError:  # a template without system messages
            text = self._jinja(probe[1:])
        return frozenset(m["role"] for m in probe if m["content"] not in text)
