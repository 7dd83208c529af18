"""Every family's template and tokenizer, on tiny GGUFs, against `transformers` and llama.cpp."""

from __future__ import annotations

from functools import cache

import pytest
from tiny_gguf import FAMILIES, tiny

from minicollab.engine.base import Segment
from minicollab.engine.weights import Weights
from minicollab.errors import ModelError
from minicollab.schema import Message, Role

lc = pytest.importorskip("llama_cpp")
pytest.importorskip("transformers")
every_family = pytest.mark.parametrize("family", FAMILIES)

SPELLED = sorted(
    {c for f in FAMILIES.values() for c in f.controls} | {"[INST]", "[/INST]", "<unk>", "<0x0A>"}
)
SYSTEM = Message("system", "Ask the person first.")
ROLES: tuple[Role, ...] = ("user", "assistant", "user", "assistant", "user")
WORDS = ("the first", "and in", "the second", "he is to", "the last")
TALK = [Message(role, text) for role, text in zip(ROLES, WORDS, strict=True)]
HARMLESS = {
    "one message": TALK[:1],
    "three exchanges": [*TALK, Message("assistant", "so"), Message("user", "at last")],
    "blanks around": [Message("user", " a "), Message("assistant", "\n b \t"), Message("user", "\u2003c\n")],
    "an empty reply": [Message("user", "a"), Message("assistant", ""), Message("user", " \n ")],
    "unicode": [Message("user", "naïve ☃ 日本 e\u0301 👩‍👧 \u200b"), *TALK[1:]],
    "looks like Jinja": [Message("user", "{{ 7 * 7 }} {% endfor %} {# no #} \\n '\""), *TALK[1:]],
    "looks like a slot": [
        Message("user", "\ue0001\ue001\ue0000\ue001"),
        Message("assistant", "\ue000"),
        TALK[2],
    ],
    "NUL": [Message("user", "a\0b"), *TALK[1:]],
}


@cache
def weights(family: str) -> Weights:
    return Weights(tiny(family), gpu_layers=0)


def rendered(family: str, messages: list[Message]) -> str:
    return "".join(s.text for s in weights(family).template.render(messages))


def theirs(family: str, messages: list[Message]) -> str:
    """What `transformers` renders, from its own function."""
    from transformers.utils.chat_template_utils import render_jinja_template

    made = FAMILIES[family]
    texts, _ = render_jinja_template(
        [[m.as_dict() for m in messages]],
        chat_template=made.template,
        add_generation_prompt=True,
        bos_token=made.bos,
        eos_token=made.eos,
    )
    return str(texts[0])


def parsed(family: str, text: str) -> list[int]:
    """llama.cpp's own tokens of a whole rendered conversation."""
    raw = text.encode()
    out = (lc.llama_token * (len(raw) + 8))()
    return list(out[: lc.llama_tokenize(weights(family).vocab, raw, len(raw), out, len(out), False, True)])


def controls(family: str, tokens: list[int]) -> list[str]:
    vocab = weights(family).vocab
    return [
        lc.llama_vocab_get_text(vocab, t).decode()
        for t in tokens
        if lc.llama_vocab_get_attr(vocab, t) & lc.LLAMA_TOKEN_ATTR_CONTROL
    ]


def detokenized(family: str, tokens: list[int]) -> str:
    return b"".join(weights(family).piece(t) for t in tokens).decode("utf-8", "replace")


@every_family
@pytest.mark.parametrize("messages", HARMLESS.values(), ids=HARMLESS)
def test_text_and_tokens_are_those_of_transformers_and_llama_cpp(
    family: str, messages: list[Message]
) -> None:
    text = theirs(family, messages)
    prompt = weights(family).template.render(messages)
    assert "".join(s.text for s in prompt) == text
    assert weights(family).tokenize(prompt) == parsed(family, text)


@every_family
def test_a_system_message_is_rendered_or_refused(family: str) -> None:
    messages = [SYSTEM, *TALK]
    if FAMILIES[family].system:
        assert rendered(family, messages) == theirs(family, messages)
        assert SYSTEM.content in rendered(family, messages)
    else:
        with pytest.raises(ModelError, match=r"System role|must alternate"):
            rendered(family, messages)


def test_roles_out_of_turn_are_refused_where_the_template_says_so() -> None:
    with pytest.raises(ModelError, match="must alternate") as error:
        rendered("mistral", [TALK[0], TALK[2]])
    assert "\n" not in str(error.value)


@every_family
@pytest.mark.parametrize("where", [0, 1, 2], ids=["system", "user", "assistant"])
def test_control_strings_in_a_message_are_plain_text(family: str, where: int) -> None:
    messages = [SYSTEM, *TALK] if FAMILIES[family].system else [Message("user", "hm"), TALK[1], *TALK[2:]]
    expected = controls(family, weights(family).tokenize(weights(family).template.render(messages)))
    assert expected  # else nothing is tested
    everything = "x".join(SPELLED)
    for text in [*SPELLED, *(f"so {c}\n" for c in SPELLED), everything, everything * 20]:
        spelled = list(messages)
        spelled[where] = Message(messages[where].role, text)
        tokens = weights(family).tokenize(weights(family).template.render(spelled, reply=text))
        assert controls(family, tokens) == expected, text
        # At least: an old Mistral template's own [INST] is plain text too.
        assert detokenized(family, tokens).count(text.strip()) >= 2


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "mistral-v1"])
def test_parsing_the_whole_text_would_have_taken_them_for_control_tokens(family: str) -> None:
    """That the test above can fail."""
    made = FAMILIES[family]
    text = theirs(family, [Message("user", made.controls[-1] * 3)])
    assert len(controls(family, parsed(family, text))) == 3 + len(
        controls(family, parsed(family, theirs(family, [Message("user", "x")])))
    )


@every_family
def test_a_control_string_that_begins_in_a_message_does_not_end_in_the_template(family: str) -> None:
    expected = controls(family, weights(family).tokenize(weights(family).template.render(TALK)))
    for control in FAMILIES[family].controls:
        for cut in range(1, len(control)):
            talk = [Message("user", control[cut:]), Message("assistant", control[:cut]), *TALK[2:]]
            tokens = weights(family).tokenize(weights(family).template.render(talk, reply=control[cut:]))
            assert controls(family, tokens) == expected


@every_family
def test_the_beginning_is_there_once_if_the_model_wants_it(family: str) -> None:
    made, bos = FAMILIES[family], weights(family).bos
    assert bos == (made.bos if made.add_bos else "")
    for text in ("the rain", f"{made.bos} rain"):
        chat = controls(
            family, weights(family).tokenize(weights(family).template.render([Message("user", text)]))
        )
        plain = weights(family).tokenize((Segment(bos, control=True), Segment(text)))
        assert chat.count(made.bos) == made.add_bos and (not made.add_bos or chat[0] == made.bos)
        assert controls(family, plain) == [made.bos] * made.add_bos
        assert detokenized(family, plain).strip() == text


@every_family
def test_a_lone_surrogate_is_a_question_mark(family: str) -> None:
    tokens = weights(family).tokenize(weights(family).template.render([Message("user", "the \ud800 end")]))
    assert "the ? end" in detokenized(family, tokens)


@every_family
@pytest.mark.parametrize("text", ["a" * 100_000, "the rain " * 11_000, "<|im_end|>" * 10_000, "{{" * 50_000])
def test_a_very_long_message_survives(family: str, text: str) -> None:
    tokens = weights(family).tokenize(weights(family).template.render([Message("user", text)]))
    assert text.strip() in detokenized(family, tokens)


@every_family
def test_the_end_of_a_turn_ends_an_answer(family: str) -> None:
    made = FAMILIES[family]
    tokens = {t: made.controls[i] for i, t in enumerate(parsed(family, "".join(made.controls)))}
    ends = {text for token, text in tokens.items() if weights(family).ends(token)}
    assert made.end in ends and not {"<|user|>", "<|im_start|>", "<start_of_turn>", "[INST]"} & ends
