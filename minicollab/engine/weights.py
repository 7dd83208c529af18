"""One GGUF in memory: weights, vocabulary and chat template, shared by all contexts on it."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from weakref import WeakValueDictionary, finalize

from minicollab.engine.base import Prompt
from minicollab.engine.quiet import quiet
from minicollab.engine.template import ChatTemplate
from minicollab.errors import ModelError

_CONTROL = 1 << 3  # LLAMA_TOKEN_ATTR_CONTROL
_USER_DEFINED = 1 << 4  # LLAMA_TOKEN_ATTR_USER_DEFINED: llama.cpp sees them in any text
_RSTRIP = 1 << 8  # LLAMA_TOKEN_ATTR_RSTRIP: the token swallows the blanks after it, as in Phi-3
_BLANKS = " \t\n\v\f\r"


_loaded: WeakValueDictionary[tuple[object, ...], Weights] = WeakValueDictionary()


def load_weights(path: Path, gpu_layers: int) -> Weights:
    """The weights of this file as it is now, in memory once, for as long as somebody uses them."""
    status = path.stat()
    key = (path, gpu_layers, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    weights = _loaded.get(key)
    if weights is None:
        weights = _loaded[key] = Weights(path, gpu_layers)
    return weights


class Weights:
    """`vocab_only`: only the vocabulary and the chat template are loaded. Raises ModelError."""

    def __init__(self, path: Path, gpu_layers: int = -1, vocab_only: bool = False):
        quiet()
        import llama_cpp as lc

        lc.llama_backend_init()
        params = lc.llama_model_default_params()
        params.n_gpu_layers = gpu_layers if gpu_layers >= 0 else 999
        params.vocab_only = vocab_only
        self.path = path
        self.model = lc.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise ModelError(f"llama.cpp cannot load {path}", "Download or convert the GGUF again.")
        self.free = finalize(self, lc.llama_model_free, self.model)  # or when nobody uses it any more
        self.free.atexit = False
        if lc.llama_model_is_recurrent(self.model) or lc.llama_model_is_hybrid(self.model):
            raise ModelError(
                f"{path.name} is a recurrent model: its conversations cannot share what they begin with",
                "Use a GGUF that has attention alone, such as Qwen2.5, Llama or Gemma.",
            )
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
        return ChatTemplate(source.decode(), self._text(bos), self._text(eos), add_bos=bool(self.bos))

    @property
    def bos(self) -> str:
        """The text of the token that every plain prompt begins with, if the model wants one."""
        import llama_cpp as lc

        wants = lc.llama_vocab_get_add_bos(self.vocab)
        return self._text(lc.llama_vocab_bos(self.vocab)) if wants else ""

    def _text(self, token: int) -> str:
        import llama_cpp as lc

        return lc.llama_vocab_get_text(self.vocab, token).decode() if token >= 0 else ""

    def _attributes(self, token: int) -> int:
        import llama_cpp as lc

        return int(lc.llama_vocab_get_attr(self.vocab, token))

    @cached_property
    def _specials(self) -> dict[str, int]:
        control = (t for t in range(self.n_vocab) if self._attributes(t) & _CONTROL)
        return self._markers | {text: token for token in control if (text := self._text(token))}

    @cached_property
    def _markers(self) -> dict[str, int]:
        """Tokens that the chat template writes and that any text that spells them would become."""
        import llama_cpp as lc

        source = (lc.llama_model_chat_template(self.model, None) or b"").decode()
        found = (t for t in range(self.n_vocab) if self._attributes(t) & _USER_DEFINED)
        return {text: token for token in found if (text := self._text(token)).strip() and text in source}

    @cached_property
    def _marker_pattern(self) -> re.Pattern[str]:
        """Where a text is to be cut so that it spells none: within each of them."""
        inside = (f"(?<={re.escape(text[0])})(?={re.escape(text[1:])})" for text in self._markers if text[1:])
        return re.compile("|".join(inside) or "(?!)")

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._specials, key=len, reverse=True)
        return re.compile("(" + ("|".join(map(re.escape, longest_first)) or "(?!)") + ")")

    def tokenize(self, prompt: Prompt) -> list[int]:
        """Token ids. Special tokens come from control segments alone; the plain text between
        two of them is tokenized in one piece, as `transformers` does."""
        tokens: list[int] = []
        plain = ""
        for segment in prompt:
            if not segment.control:
                *cut, last = self._marker_pattern.split(segment.text)
                for piece in cut:
                    tokens += self._text_after(tokens, plain + piece)
                    plain = ""
                plain += last
                continue
            for position, piece in enumerate(self._special_pattern.split(segment.text)):
                if position % 2 == 0:
                    plain += piece
                else:
                    tokens += [*self._text_after(tokens, plain), self._specials[piece]]
                    plain = ""
        return tokens + self._text_after(tokens, plain)

    def _text_after(self, tokens: list[int], text: str) -> list[int]:
        swallowed = tokens and self._attributes(tokens[-1]) & _RSTRIP
        return self.text_tokens(text.lstrip(_BLANKS) if swallowed else text)

    def text_tokens(self, text: str) -> list[int]:
        """Token ids of plain text, in which nothing is a control token."""
        return list(self._text_tokens(text))

    @cached_property
    def _text_tokens(self) -> Callable[[str], tuple[int, ...]]:
        # A conversation's earlier messages come again with every request.
        return lru_cache(maxsize=1024)(self._tokenize_text)

    def _tokenize_text(self, text: str) -> tuple[int, ...]:
        return tuple(self.read(text)) if text else ()

    def read(self, text: str, special: bool = False, around: bool = False) -> list[int]:
        """Token ids, as llama.cpp's own tokenizer reads a text. `special`: what spells a control token
        is one; `around`: BOS and EOS are added if the model wants them."""
        import llama_cpp as lc

        raw = text.encode("utf-8", "replace")
        room = len(raw) + 8  # some vocabularies put a space in front
        out = (lc.llama_token * room)()
        return list(out[: lc.llama_tokenize(self.vocab, raw, len(raw), out, room, around, special)])

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; nothing for a control token."""
        if token not in self._pieces:
            import llama_cpp as lc

            room = 256
            out = ctypes.create_string_buffer(room)
            n = lc.llama_token_to_piece(self.vocab, token, out, room, 0, False)
            self._pieces[token] = out.raw[: max(n, 0)]
        return self._pieces[token]

    @cached_property
    def _pieces(self) -> dict[int, bytes]:
        return {}

    def ends(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""
        return token in self._endings

    @cached_property
    def _endings(self) -> frozenset[int]:
        import llama_cpp as lc

        return frozenset(t for t in range(self.n_vocab) if lc.llama_vocab_is_eog(self.vocab, t))
