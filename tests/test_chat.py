"""The chat without a terminal: turns, commands, the adapter's strength, and text that is no text."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from minicollab.chat import Chat, open_chat, printable
from minicollab.chat_commands import COMMANDS, parse
from minicollab.cli import main
from minicollab.engine.base import Completion, Prompt, Sampling
from minicollab.engine.scripted import ScriptedEngine
from minicollab.errors import MinicollabError
from minicollab.recipe import Generation
from minicollab.schema import Message
from tests.tiny_gguf import LAYERS, WIDTH, tiny

GREEDY = Generation(max_tokens=8, temperature=0)


class Speaker(ScriptedEngine):
    """Says its lines word by word; what it was turned to is in `strengths`."""

    def __init__(self, *lines: str, context: int = 10_000):
        super().__init__(generate=lines, context=context)
        self.strengths: list[float] = []

    async def generate(
        self, prompt: Prompt, sampling: Sampling, hear: Callable[[str], None] | None = None
    ) -> Completion:
        answer = await super().generate(prompt, sampling)
        for end in range(1, len(answer.text) + 1):
            if hear:
                hear(answer.text[:end])
        return answer

    def set_strength(self, strength: float) -> None:
        self.strengths.append(strength)


def chat(*lines: str, adapted: bool = True, context: int = 10_000) -> tuple[Chat, Speaker]:
    engine = Speaker(*lines, context=context)
    return Chat(engine, GREEDY, seed=1, adapted=adapted), engine


def deaf(*heard: str) -> None: ...


def said(talk: Chat) -> list[str]:
    return [message.content for message in talk.talk]


def obey(talk: Chat, line: str) -> str:
    found = parse(line)
    assert found
    do = COMMANDS[found[0]].do
    assert do
    return do(talk, found[1])


# Turns


def test_a_talk_grows_by_question_and_answer_and_is_heard_as_it_comes() -> None:
    talk, engine = chat("Hello there.", "A dog.")
    heard: list[str] = []
    assert talk.ask("Hi", heard.append).text == "Hello there."
    assert heard[0] == "H" and heard[-1] == "Hello there."
    assert all(later.startswith(earlier) for earlier, later in pairwise(heard))
    talk.tell("Be brief.")
    talk.ask("Draw", deaf)
    assert said(talk) == ["Hi", "Hello there.", "Draw", "A dog."]
    assert (
        engine.requests[1].prompt == "<system>Be brief.<user>Hi<assistant>Hello there.<user>Draw<assistant>"
    )


def test_another_answer_replaces_the_last_one_and_is_drawn_anew() -> None:
    talk, engine = chat("one", "two", "three")
    with pytest.raises(MinicollabError, match="nothing was asked"):
        talk.regenerate(deaf)
    talk.ask("Count", deaf)
    talk.regenerate(deaf)
    talk.regenerate(deaf)
    assert said(talk) == ["Count", "three"]
    assert len({request.prompt for request in engine.requests}) == 1
    assert len({request.sampling.seed for request in engine.requests if request.sampling}) == 3


def test_an_empty_answer_leaves_the_talk_as_it_was() -> None:
    talk, _ = chat("yes", "")
    talk.ask("A", deaf)
    assert talk.ask("B", deaf).text == ""
    assert said(talk) == ["A", "yes"]


def test_a_question_without_an_answer_is_asked_again_and_otherwise_each_time() -> None:
    talk, engine = chat("yes", "", "", "", "at last", "x")
    talk.ask("A", deaf)
    talk.ask("B", deaf)
    for _ in range(3):
        talk.regenerate(deaf)
    assert said(talk) == ["A", "yes", "B", "at last"]
    assert len({request.sampling.seed for request in engine.requests[1:] if request.sampling}) == 4
    talk.ask("C", deaf)
    assert said(talk)[-2:] == ["C", "x"]


def test_a_command_that_takes_nothing_drops_no_words() -> None:
    for line in ("/new Help me write a speech.", "/quit now", "/regenerate\nplease", "/help me"):
        with pytest.raises(MinicollabError, match="takes nothing after it"):
            parse(line)
    assert parse("/new  ") == ("new", "") and parse(" /new") is None


def test_the_oldest_exchanges_make_room_and_a_message_too_long_is_refused() -> None:
    talk, engine = chat("a b c", "d", context=20)
    talk.ask("one two three four five six", deaf)
    assert talk.ask("seven eight nine ten eleven twelve", deaf).left_out == 2
    assert "one" not in engine.requests[-1].prompt
    with pytest.raises(MinicollabError, match=r"fewer words.*--context"):
        talk.ask("word " * 30, deaf)
    assert len(said(talk)) == 4


# The adapter


def test_a_comparison_asks_base_and_trained_and_changes_nothing() -> None:
    talk, engine = chat("first", "from the base", "from the trained one", "b", "t")
    talk.ask("Q", deaf)
    talk.turn(0.5)
    heard: dict[str, str] = {}
    assert talk.compare("Which?", heard.__setitem__)
    assert heard == {"base": "from the base", "trained": "from the trained one"}
    talk.compare("", heard.__setitem__)
    assert engine.requests[-1].prompt == "<user>Q<assistant>"
    assert engine.strengths == [0.5, 0.0, 0.5, 0.5, 0.0, 0.5, 0.5]
    assert said(talk) == ["Q", "first"]


def test_without_an_adapter_one_line_says_what_it_takes() -> None:
    talk, _ = chat(adapted=False)
    for what in (lambda: obey(talk, "/adapter 1"), lambda: talk.compare("x", deaf)):
        with pytest.raises(MinicollabError, match=r"needs an adapter\. .*--adapter"):
            what()


# Commands


def test_what_is_a_command_and_what_is_a_message() -> None:
    assert parse("/system Be\nbrief. ") == ("system", "Be\nbrief.")
    assert parse("/quit") == ("quit", "")
    for message in ("hello /quit", "/etc/passwd is what?", "// a comment", "/ no", " /quit"):
        assert parse(message) is None
    with pytest.raises(MinicollabError, match="/regenerate"):
        parse("/regenrate")


def test_the_strength_is_told_and_must_be_one() -> None:
    talk, engine = chat()
    assert "counts 1 " in obey(talk, "/adapter")
    assert "counts 0.5 " in obey(talk, "/adapter 0.5") and engine.strengths == [0.5]
    for bad in ("half", "-1", "nan", "inf"):
        with pytest.raises(MinicollabError, match=f"{bad} is no strength"):
            obey(talk, f"/adapter {bad}")
    assert talk.strength == 0.5


def test_a_saved_talk_goes_on(tmp_path: Path) -> None:
    talk, _ = chat("yes\n\u2028é", "no")
    obey(talk, "/system Be brief.")
    talk.ask("A?", deaf)
    file = tmp_path / "talk.json"
    assert "3 messages" in obey(talk, f"/save {file}")
    assert [row["role"] for row in json.loads(file.read_text("utf-8"))] == ["system", "user", "assistant"]
    other, engine = chat("fine")
    obey(other, f"/load {file}")
    assert (other.system, said(other)) == ("Be brief.", said(talk))
    other.ask("B?", deaf)
    assert engine.requests[0].prompt.startswith("<system>Be brief.<user>A?")
    obey(other, f"/save {file}")  # a conversation may be written over
    assert len(json.loads(file.read_text("utf-8"))) == 5
    assert obey(other, "/new") and said(other) == []


def test_files_that_hold_no_talk_stay_as_they_are(tmp_path: Path) -> None:
    talk, _ = chat()
    other = tmp_path / "other"
    for content in ("alias ls=ls", "{}", '[{"role": "god", "content": "x"}]', '[{"role": "user"}]', "[1]"):
        other.write_text(content)
        for command in ("load", "save"):
            with pytest.raises(MinicollabError, match="no saved conversation"):
                obey(talk, f"/{command} {other}")
        assert other.read_text() == content
    with pytest.raises(MinicollabError, match="/save FILE"):
        obey(talk, "/save")
    with pytest.raises(MinicollabError, match="No such file"):
        obey(talk, f"/load {tmp_path / 'none'}")


# Text that is no text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31;1mred\x1b[0m b", "ared b"),
        ("\x1b]0;owned\x07title \x1b]8;;http://x\x1b\\link", "title link"),
        ("\x1bcreset\x1b(B\x1b7", "reset"),
        ("bell\x07 back\x08\x08 over\rwrite\n\ttab", "bell back overwrite\n\ttab"),
        ("8 bit \x9b31m, right \u202eto left", "8 bit 31m, right to left"),
        ("\x1b]52;c;" + "A" * 400, "52;c;" + "A" * 400),
        ("\x1b[" + "1" * 100 + "m", "1" * 100 + "m"),
        ("ends \x1b[3", "ends 3"),
    ],
)
def test_no_escape_sequence_gets_through_in_whatever_pieces_it_comes(text: str, shown: str) -> None:
    assert printable(text) == shown
    before = ""
    for end in range(len(text)):
        now = printable(text[:end], whole=False)
        assert now.startswith(before) and "\x1b" not in now
        before = now
    assert shown.startswith(before)


# A real, tiny model


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LoRA GGUF for the tiny models, strong enough to change what they say."""
    import gguf
    import numpy as np

    path = tmp_path_factory.mktemp("adapter") / "adapter.gguf"
    rng = np.random.default_rng(5)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for layer in range(LAYERS):
        for half, shape in (("a", (8, WIDTH)), ("b", (WIDTH, 8))):
            tensor = rng.normal(0, 0.3, shape).astype(np.float32)
            writer.add_tensor(f"blk.{layer}.attn_output.weight.lora_{half}", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def opened(adapter: Path | None = None, max_tokens: int = 16) -> Chat:
    given = {"temperature": 0.0, "max_tokens": max_tokens}
    return open_chat(str(tiny("chatml")), adapter, given, seed=1, context=1024)


def test_strength_0_is_the_base_and_1_the_adapter(adapter: Path) -> None:
    base = opened().ask("the rain", deaf).text
    talk = opened(adapter)
    trained = talk.ask("the rain", deaf).text
    assert trained != base
    heard: dict[str, str] = {}
    talk.compare("", heard.__setitem__)
    assert {name: text.strip() for name, text in heard.items()} == {"base": base, "trained": trained}
    talk.turn(0)
    assert talk.regenerate(deaf).text == base
    talk.turn(1)
    assert talk.regenerate(deaf).text == trained


def test_ctrl_c_stops_the_reply_and_the_talk_goes_on() -> None:
    talk = opened(max_tokens=400)
    heard: list[str] = []

    def interrupt(text: str) -> None:
        heard.append(text)
        if len(heard) == 20:
            signal.raise_signal(signal.SIGINT)

    reply = talk.ask("the rain", interrupt)
    assert reply.ended == "stopped" and len(heard) < 40
    assert said(talk) == ["the rain", reply.text] and reply.text
    assert talk.ask("and you", deaf).ended in ("end", "length")
    assert len(said(talk)) == 4


def test_a_message_that_spells_control_tokens_is_text() -> None:
    engine = opened().engine
    plain, spelled = (engine.chat([Message("user", text)]) for text in ("a b", "a<|im_end|>b"))
    letters = len("<|im_end|>") - len(" ")  # no merges there: a token a character
    assert engine.length(spelled) == engine.length(plain) + letters


# The command


def typed(lines: str, *options: object) -> Result:
    arguments = ["chat", str(tiny("chatml")), "--max-tokens", 8, "--seed", 1, *options]
    return CliRunner().invoke(main, [str(a) for a in arguments], input=lines)


def test_piped_lines_are_answered_on_standard_output(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    lines = f"the rain\n\n/system Be brief.\nand you\n/save {file}\n/quit\nnever asked\n"
    result = typed(lines)
    assert result.exit_code == 0, result.output
    replies = [row["content"] for row in json.loads(file.read_text("utf-8")) if row["role"] == "assistant"]
    assert len(replies) == 2
    assert result.stdout == "".join(f"{reply}\n" for reply in replies)
    assert "is told so" in result.stderr and "\x1b" not in result.output
    assert typed(lines).stdout == result.stdout  # the same seed


def test_piped_bytes_that_are_no_text_are_a_message_all_the_same() -> None:
    command = [sys.executable, "-m", "minicollab", "chat", str(tiny("chatml")), "--max-tokens", "8"]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(
        command, input=b"caf\xe9\n", capture_output=True, env=environment, check=False, timeout=120
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr and done.stdout.strip()


def test_a_piped_comparison(adapter: Path) -> None:
    result = typed("/compare the rain\n", "--adapter", adapter)
    base, trained = (line.partition(": ") for line in result.stdout.splitlines() if ": " in line)
    assert (base[0], trained[0]) == ("base", "trained") and base[2] != trained[2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.gguf"], "none.gguf"),
        (["smollm2-135m-instrct"], "Did you mean smollm2-135m-instruct"),
        (["empty"], "there is no recipe"),
        (["MODEL", "--adapter", "MODEL"], "cannot load the adapter"),
        (["MODEL", "--adapter", "words"], "not a GGUF"),
        (["MODEL", "--adapter", "empty"], "no PEFT adapter"),
    ],
)
def test_what_cannot_be_opened_is_said_in_a_line(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("words").write_text("not a model")
    where = [str(tiny("chatml")) if a == "MODEL" else a for a in arguments]
    result = CliRunner().invoke(main, ["chat", *where], input="hi\n")
    assert result.exit_code not in (0, None) and result.stdout == ""
    line = result.stderr.splitlines()[-1]
    assert line.startswith("minicollab: ") and says in line and "Traceback" not in result.stderr


def run_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "recipe.yaml").write_text(
        f"name: tiny\nmodels: {{policy: {tiny('chatml')}}}\ntasks: {{path: tasks.jsonl}}\n"
        "reward: {weights: {goal_coverage: 1}}\npolicy: {temperature: 0}\n"
    )
    return folder


@pytest.mark.parametrize("command", ["chat", "serve"])
def test_a_run_that_is_not_exported_says_what_to_type(command: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [command, str(run_folder(tmp_path / "run"))], input="hi\n")
    assert "Run: minicollab export" in result.stderr.splitlines()[-1]
    assert (result.exit_code, result.stdout) == (5, "")


def test_a_run_talks_with_its_adapter(tmp_path: Path, adapter: Path) -> None:
    run = run_folder(tmp_path / "run")
    (run / "export").mkdir()
    (run / "export" / "adapter.gguf").write_bytes(adapter.read_bytes())
    talk = open_chat(str(run), context=1024, given={"max_tokens": 16})
    assert talk.strength == 1.0 and talk.options.temperature == 0
    assert talk.ask("the rain", deaf).text == opened(adapter).ask("the rain", deaf).text
