"""One GGUF in memory: weights, vocabulary and chat template, shared by all contexts on it."""

from __future__ import annotations

import ctypes
import re
from functools import cache, cached_property
from pathlib import Path

from minicollab.engine.base import Prompt
from minicollab.engine.quiet import quiet
from minicollab.engine.template import ChatTemplate
from minicollab.errors import ModelError

_CONTROL = 1 << 3  # LLAMA_TOKEN_ATTR_CONTROL


@cache
def load_weights(path: Path, gpu_layers: int) -> Weights:
    """The weights of this file, loaded once in this process."""
    return Weights(path, gpu_layers)


class Weights:
    def __init__(self, path: Path, gpu_layers: int = -1):
        quiet()
        import llama_cpp as lc

        lc.llama_backend_init()
        params = lc.llama_model_default_params()
        params.n_gpu_layers = gpu_layers if gpu_layers >= 0 else 999
        self.path = path
        self.model = lc.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise ModelError(f"llama.cpp cannot load {path}", "Download or convert the GGUF again.")
        self.vocab = lc.llama_model_get_vocab(self.model)
        self.n_vocab = lc.llama_vocab_n_tokens(self.vocab)

    @cached_property
    def template(self) -> ChatTemplate:
        import llama_cpp as lc

        source = lc.llama_model_chat_template(self.model, None)
        if not source:
            raise ModelError(
                f"{self.path.name} has no chat template", "Use an instruct (chat) GGUF as policy and judge."
            )
        bos, eos = lc.llama_vocab_bos(self.vocab), lc.llama_vocab_eos(self.vocab)
        return ChatTemplate(source.decode(), self._text(bos), self._text(eos))

    @property
    def bos(self) -> str:
        """The text of the token that every plain prompt begins with, if the model wants one."""
        import llama_cpp as lc

        wants = lc.llama_vocab_get_add_bos(self.vocab)
        return self._text(lc.llama_vocab_bos(self.vocab)) if wants else ""

    def _text(self, token: int) -> str:
        import llama_cpp as lc

        return lc.llama_vocab_get_text(self.vocab, token).decode() if token >= 0 else ""

    @cached_property
    def _specials(self) -> dict[str, int]:
        import llama_cpp as lc

        control = (t for t in range(self.n_vocab) if lc.llama_vocab_get_attr(self.vocab, t) & _CONTROL)
        return {text: token for token in control if (text := self._text(token))}

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._specials, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def tokenize(self, prompt: Prompt) -> list[int]:
        """Token ids. Special tokens come from control segments alone; the plain text between
        two of them is tokenized in one piece, as `transformers` does."""
        tokens: list[int] = []
        plain = ""
        for segment in prompt:
            if not segment.control:
                plain += segment.text
                continue
            for position, piece in enumerate(self._special_pattern.split(segment.text)):
                if position % 2 == 0:
                    plain += piece
                else:
                    tokens += [*self.text_tokens(plain), self._specials[piece]]
                    plain = ""
        return tokens + self.text_tokens(plain)

    def text_tokens(self, text: str) -> list[int]:
        import llama_cpp as lc

        if not text:
            return []
        raw = text.encode("utf-8", "replace")
        room = len(raw) + 8
        out = (lc.llama_token * room)()
        n = lc.llama_tokenize(self.vocab, raw, len(raw), out, room, False, False)
        return list(out[:n])

    def piece(self, token: int) -> bytes:
        import llama_cpp as lc

        room = 256
        out = ctypes.create_string_buffer(room)
        n = lc.llama_token_to_piece(self.vocab, token, out, room, 0, False)
        return out.raw[: max(n, 0)]

    def ends(self, token: int) -> bool:
        import llama_cpp as lc

        return bool(lc.llama_vocab_is_eog(self.vocab, token))
