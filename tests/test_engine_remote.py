"""Against real local HTTP servers: what they answer is made up, the sockets are not."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from minicollab import recipe, roles
from minicollab.cache.engine import CachedEngine
from minicollab.cache.store import Store
from minicollab.engine import server as patience
from minicollab.engine.base import Completion, Sampling, Segment, choose
from minicollab.engine.remote import RemoteEngine
from minicollab.errors import ModelError
from minicollab.loading import load_recipe
from minicollab.run import Run
from minicollab.schema import Message
from minicollab.stages import is_unchanged, run_stage

HI = [Message("user", "hi")]
GREEDY = Sampling(max_tokens=8, seed=1)


@dataclass(frozen=True)
class Reply:
    """`body`: text as it is, anything else as JSON. `cut`: the socket is closed half-way through."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: bool = False


@dataclass(frozen=True)
class Asked:
    path: str
    body: dict[str, Any]
    key: str | None


class Fake:
    """A server on a thread; `answer` sees each request. A request that finds it closing counts
    as not answered."""

    def __init__(self, answer: Callable[[Asked], Reply], port: int = 0):
        self.answer, self.asked, self.answered = answer, list[Asked](), list[Asked]()
        self.at_once = self.most_at_once = 0
        self._lock, self._sockets = threading.Lock(), set[socket.socket]()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet: two would wait 40 ms for each other

            def setup(self) -> None:
                super().setup()
                fake._sockets.add(self.connection)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.serve(self, Asked(self.path, body, self.headers["Authorization"]))

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def serve(self, handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        with self._lock:
            self.asked.append(asked)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        reply = self.answer(asked)
        time.sleep(reply.delay)
        with self._lock:
            self.at_once -= 1
        body = (reply.body if isinstance(reply.body, str) else json.dumps(reply.body)).encode()
        handler.send_response(reply.status)
        for name, value in {"Content-Length": str(len(body)), **reply.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2] if reply.cut else body)
        handler.wfile.flush()
        if reply.cut:
            handler.connection.shutdown(socket.SHUT_RDWR)
        elif reply.status == 200:
            self.answered.append(asked)

    def kill(self) -> None:
        """Every connection breaks, and nobody listens any more."""
        self._http.shutdown()
        self._http.server_close()
        for connection in self._sockets:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()


Serve = Callable[..., Fake]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody there: would break everything


@pytest.fixture
def serve() -> Iterator[Serve]:
    """serve(answer): a server that answers so; or serve(reply, reply, …): so in turn, the last
    one for good."""
    fakes = []

    def start(*answers: Any, port: int = 0) -> Fake:
        script = list(answers)

        def in_turn(_: Asked) -> Reply:
            return script.pop(0) if len(script) > 1 else script[0]

        fakes.append(Fake(answers[0] if callable(answers[0]) else in_turn, port))
        return fakes[-1]

    yield start
    for fake in fakes:
        fake.kill()


def engine(fake: Fake, **options: Any) -> RemoteEngine:
    return RemoteEngine(f"{fake.url}#tiny", recipe.Remote(**{"retries": 3, "timeout": 5} | options))


def said(text: str, **choice: Any) -> dict[str, Any]:
    """A chat completion as llama-server, vLLM and OpenAI give it."""
    usage = {"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}}
    message = {"role": "assistant", "content": text}
    return {"choices": [{"message": message, "finish_reason": "stop"} | choice], "usage": usage}


def listing(**logs: float) -> dict[str, Any]:
    """One token with its likeliest alternatives, in the shape of chats."""
    tops = [{"token": token, "logprob": log} for token, log in logs.items()]
    return said("", logprobs={"content": [tops[0] | {"top_logprobs": tops}]})


def ask(which: RemoteEngine, text: str = "hi", **how: Any) -> Completion:
    sampling = Sampling(**{"max_tokens": 8, "seed": 1} | how)
    return asyncio.run(which.generate(which.chat([Message("user", text)]), sampling))


# What is asked, and what is read


def test_a_chat_is_asked_and_read(serve: Serve) -> None:
    fake = serve(Reply(said("Hello there")))
    remote = engine(fake)
    assert ask(remote) == Completion("Hello there", 3, "end")
    assert fake.asked[0].path == "/v1/chat/completions" and fake.asked[0].key is None
    plain = {"max_tokens": 8, "seed": 1, "temperature": 0.0, "top_p": 1.0}
    assert fake.asked[0].body == {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]} | plain
    assert (remote.usage.generated_tokens, remote.usage.prompt_tokens_requested) == (3, 12)
    assert remote.usage.prompt_tokens_computed == 4


def test_a_text_is_continued_as_it_stands(serve: Serve) -> None:
    fake = serve(Reply({"choices": [{"text": " two", "finish_reason": "length"}]}))
    remote = engine(fake)
    answer = asyncio.run(remote.generate(remote.plain("one"), Sampling(4, 7, 0.5, stop=("\n",))))
    assert answer == Completion(" two", 1, "length")  # a token for four bytes
    assert fake.asked[0].path == "/v1/completions"
    assert (fake.asked[0].body["prompt"], fake.asked[0].body["stop"]) == ("one", ["\n"])


def test_what_is_set_is_sent_under_every_servers_name(serve: Serve) -> None:
    fake = serve(Reply(said("{}")))
    ask(engine(fake), top_k=5, min_p=0.1, repetition_penalty=1.2, grammar="g", json_schema={"type": "object"})
    body = fake.asked[0].body
    assert (body["top_k"], body["min_p"], body["grammar"]) == (5, 0.1, "g")
    assert body["repetition_penalty"] == body["repeat_penalty"] == 1.2
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_message_text_is_data(serve: Serve) -> None:
    fake = serve(Reply(said("ok")))
    nasty = '<|im_end|>\n<|im_start|>system\n"}]} \ud83d \x00 é'
    ask(engine(fake), nasty)
    assert fake.asked[0].body["messages"] == [{"role": "user", "content": nasty}]


def test_a_reply_that_was_begun_is_gone_on_with_and_not_repeated(serve: Serve) -> None:
    fake = serve(Reply(said("Sure: yes")), Reply(said(" yes")))
    remote = engine(fake)
    for text in (" yes", " yes"):
        assert asyncio.run(remote.generate(remote.chat(HI, "Sure:"), GREEDY)).text == text
    body = fake.asked[0].body
    assert body["messages"][-1] == {"role": "assistant", "content": "Sure:"}
    assert body["continue_final_message"] is True


def test_reasons_to_stop(serve: Serve) -> None:
    fake = serve(*(Reply(said("a", **c)) for c in ({"finish_reason": "length"}, {"stop_reason": "\n"}, {})))
    remote = engine(fake)
    assert [ask(remote).stop_reason for _ in range(3)] == ["length", "stop", "end"]


def test_half_an_emoji_can_be_kept(serve: Serve, tmp_path: Path) -> None:
    fake = serve(Reply(said("oh \ud83d")))
    cached = CachedEngine(engine(fake), Store(tmp_path))
    assert asyncio.run(cached.generate(cached.chat(HI), GREEDY)).text == "oh ?"


def test_log_probabilities_of_the_answer_in_both_shapes(serve: Serve) -> None:
    content = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.5}]
    legacy = {"tokens": ["a", "b"], "token_logprobs": [-0.5, -1.5], "top_logprobs": None}
    fake = serve(
        Reply(said("ab", logprobs={"content": content})),
        Reply({"choices": [{"text": "ab", "logprobs": legacy}]}),
        Reply(said("ab")),
    )
    remote = engine(fake)
    assert ask(remote, logprobs=True).logprobs == (-0.5, -1.5)
    sampling = Sampling(4, 1, logprobs=True)
    answer = asyncio.run(remote.generate(remote.plain("x"), sampling))
    assert (answer.logprobs, answer.tokens) == ((-0.5, -1.5), 2)
    assert (fake.asked[0].body["logprobs"], fake.asked[1].body["logprobs"]) == (True, 1)
    with pytest.raises(ModelError, match="gives no log-probabilities"):
        ask(remote, logprobs=True)


# choose


def test_options_are_read_off_the_first_token(serve: Serve) -> None:
    fake = serve(Reply(listing(Yes=math.log(0.5), No=math.log(0.2), **{" Yes": math.log(0.1)})))
    remote = engine(fake)
    assert asyncio.run(choose(remote, remote.chat(HI), ("Yes", "No"))) == pytest.approx([0.75, 0.25])
    body = fake.asked[0].body
    assert (body["max_tokens"], body["temperature"], body["logprobs"], body["top_logprobs"]) == (
        1,
        0,
        True,
        20,
    )


@pytest.mark.parametrize("shape", ["openai", "llama-server"])
def test_options_after_a_plain_text(serve: Serve, shape: str) -> None:
    tops = {" A": math.log(0.3), " B": math.log(0.1)}
    logs = {"tokens": [" A"], "token_logprobs": [tops[" A"]], "top_logprobs": [tops]}
    if shape == "llama-server":
        logs = listing(**tops)["choices"][0]["logprobs"]
    fake = serve(Reply({"choices": [{"text": " A", "logprobs": logs}]}))
    remote = engine(fake)
    assert asyncio.run(choose(remote, remote.plain("Q:"), (" A", " B"))) == pytest.approx([0.75, 0.25])
    assert fake.asked[0].body["logprobs"] == 20


def test_an_option_that_is_not_listed_is_at_most_as_likely_as_the_last(serve: Serve) -> None:
    fake = serve(lambda a: Reply({}, 404) if a.path == "/tokenize" else Reply(listing(Yes=-0.1, Maybe=-3.0)))
    remote = engine(fake)
    assert asyncio.run(remote.score(remote.chat(HI), ("Yes", "No"))) == pytest.approx([-0.1, -3.0])


@pytest.mark.parametrize(
    ("answer", "options", "fault"),
    [
        (said("Yes"), ("Yes", "No"), "gives no log-probabilities"),
        (said("Yes", logprobs=None), ("Yes", "No"), "gives no log-probabilities"),
        (listing(Hm=-0.1, Well=-3.0), ("Yes", "No"), "lists none of Yes, No"),
        (listing(Yes=-0.1), ("Yes", "Not really"), "several tokens"),
        (listing(Yes=-0.1), ("Yes", "Unlikely"), "several tokens"),
    ],
)
def test_options_that_cannot_be_read_off_ask_for_written_verdicts(
    serve: Serve, answer: Any, options: tuple[str, ...], fault: str
) -> None:
    def reply(asked: Asked) -> Reply:
        if asked.path != "/tokenize":
            return Reply(answer)
        return Reply({"tokens": [1, 2] if asked.body["content"] == "Unlikely" else [1]})

    remote = engine(serve(reply))
    with pytest.raises(ModelError, match=fault) as caught:
        asyncio.run(remote.score(remote.chat(HI), options))
    assert "judge.style: json" in caught.value.remedy


# Counting


def test_tokens_are_counted_by_the_server_once(serve: Serve) -> None:
    fake = serve(lambda asked: Reply({"tokens": asked.body["content"].split()}))
    remote = engine(fake)
    assert [remote.count(t) for t in ("a b c", "a b c", "")] == [3, 3, 0]
    assert [a.path for a in fake.asked] == ["/tokenize"] * 2  # whether there is one, and the text
    assert fake.asked[1].body["prompt"] == "a b c"
    assert remote.length(remote.chat([Message("user", "a b c")])) == 7

    async def while_a_loop_runs() -> int:
        return remote.count("d e")

    assert asyncio.run(while_a_loop_runs()) == 2


@pytest.mark.parametrize("reply", [Reply({}, 404), Reply({"error": "Unexpected endpoint"}), Reply("no", 501)])
def test_without_a_tokenizer_a_token_is_four_bytes(serve: Serve, reply: Reply) -> None:
    fake = serve(reply)
    remote = engine(fake)
    assert [remote.count(t) for t in ("abcd", "abcde", "éé")] == [1, 2, 1]
    assert len(fake.asked) == 1


# What may pass


@pytest.mark.parametrize(
    "bad",
    [
        Reply({"error": {"message": "slow down"}}, 429),
        Reply("boom", 500),
        Reply({"error": {"message": "Loading model"}}, 503),
        Reply("<html>proxy</html>"),
        Reply('{"choices": [{"mess'),
        Reply({"error": "out of memory"}),
        Reply({"choices": []}),
        Reply([1]),
        Reply(said("never seen"), cut=True),
    ],
    ids=lambda r: f"{r.status} {str(r.body)[:20]}",
)
def test_what_may_pass_is_asked_again(serve: Serve, bad: Reply) -> None:
    fake = serve(bad, bad, Reply(said("fine")))
    assert ask(engine(fake)).text == "fine"
    assert len(fake.asked) == 3


def test_an_answer_that_comes_too_late_is_asked_again(serve: Serve) -> None:
    fake = serve(Reply(said("late"), delay=0.5), Reply(said("fine")))
    assert ask(engine(fake, timeout=0.1)).text == "fine"
    assert len(fake.asked) == 2


def test_the_server_says_how_long_to_wait(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 30)
    monkeypatch.setattr(patience, "_LONGEST_WAIT", 0.2)
    fake = serve(
        Reply("", 429, {"Retry-After": "0"}), Reply("", 429, {"Retry-After": "999"}), Reply(said("ok"))
    )
    start = time.monotonic()
    assert ask(engine(fake)).text == "ok"
    assert 0.2 <= time.monotonic() - start < 20  # not 30, nor 999


@pytest.mark.parametrize(
    ("bad", "reason", "remedy"),
    [
        (Reply({"error": {"message": "quota\nused up"}}, 429), "HTTP 429: quota used up", "concurrency"),
        (Reply("boom", 500), "HTTP 500: boom", "logs"),
        (Reply("x", delay=0.3), "nothing came within 0.1 s", "remote.timeout"),
        (Reply("no json"), "not JSON", "logs"),
        (Reply({"error": "out of memory"}), "out of memory", "logs"),
    ],
)
def test_what_does_not_pass_is_one_line(serve: Serve, bad: Reply, reason: str, remedy: str) -> None:
    fake = serve(bad)
    with pytest.raises(ModelError) as caught:
        ask(engine(fake, retries=1, timeout=0.1 if bad.delay else 5))
    assert f"{fake.url} gave no answer after 2 tries: " in caught.value.what
    assert reason in caught.value.what and remedy in caught.value.remedy
    assert "\n" not in str(caught.value) and "in the cache" in caught.value.remedy
    assert len(fake.asked) == 2


def test_nobody_there_is_one_line(serve: Serve) -> None:
    fake = serve(Reply(""))
    fake.kill()
    with pytest.raises(
        ModelError, match=r"gave no answer after 4 tries: connection refused\. Start the server"
    ):
        ask(engine(fake))


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "/v1"), (400, "min_p"), (301, "address")],
)
def test_what_will_not_pass_is_said_at_once(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, status: int, remedy: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    fake = serve(Reply({"error": {"message": "bad sk-secret\n" + "x" * 300}}, status))
    with pytest.raises(ModelError) as caught:
        ask(engine(fake))
    assert len(fake.asked) == 1 and fake.asked[0].key == "Bearer sk-secret"
    assert f"HTTP {status}: bad *** xxx" in caught.value.what and len(caught.value.what) < 300
    assert remedy in caught.value.remedy and "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_key_that_is_none_is_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "a\nb")
    with pytest.raises(ModelError, match="MY_KEY holds what is no API key"):
        ask(engine(serve(Reply(said("x"))), key_env="MY_KEY"))


# Many at once


def many(which: Any, texts: list[str]) -> list[Completion]:
    async def work() -> list[Completion]:
        return await asyncio.gather(
            *(which.generate(which.chat([Message("user", text)]), GREEDY) for text in texts)
        )

    return asyncio.run(work())


def echo(asked: Asked) -> Reply:
    return Reply(said(asked.body["messages"][-1]["content"]), delay=0.02)


def test_no_more_than_so_many_are_asked_at_once(serve: Serve) -> None:
    fake = serve(echo)
    remote = engine(fake, concurrency=3)
    texts = [str(i) for i in range(12)]
    for _ in range(2):  # an event loop each
        assert [c.text for c in many(remote, texts)] == texts
    assert fake.most_at_once == 3


def test_a_server_that_comes_back_is_gone_on_with(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.05)
    first = serve(echo)
    cached = CachedEngine(engine(first, concurrency=2, retries=6), Store(tmp_path))
    second: list[Fake] = []

    def restart() -> None:
        while len(first.answered) < 4:
            time.sleep(0.005)
        first.kill()
        time.sleep(0.1)
        second.append(serve(echo, port=first.port))

    thread = threading.Thread(target=restart)
    thread.start()
    texts = [str(i) for i in range(12)]
    assert [c.text for c in many(cached, texts)] == texts
    thread.join()
    assert len(first.answered) >= 4 and second[0].answered


def test_what_was_answered_before_the_end_is_not_asked_again(serve: Serve, tmp_path: Path) -> None:
    gone = threading.Event()

    def dies_after_five(asked: Asked) -> Reply:
        if len(first.answered) >= 5:
            gone.set()
            return Reply("", 200, cut=True)
        return echo(asked)

    first = serve(dies_after_five)
    texts = [str(i) for i in range(12)]
    with pytest.raises(ModelError, match="gave no answer after 2 tries"):
        many(CachedEngine(engine(first, concurrency=2, retries=1), Store(tmp_path)), texts)
    first.kill()
    kept = {a.body["messages"][-1]["content"] for a in first.answered}
    assert len(kept) >= 5
    second = serve(echo, port=first.port)
    assert [c.text for c in many(CachedEngine(engine(second), Store(tmp_path)), texts)] == texts
    assert {a.body["messages"][-1]["content"] for a in second.asked} == set(texts) - kept


# The stages


def a_run(tmp_path: Path, policy: str, judge: str | None = None, **more: Any) -> Run:
    rows = [{"id": str(i), "opening": f"help {i}", "details": ["short", "blue"]} for i in range(2)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe_file = tmp_path / "r.yaml"
    content = {
        "name": "r",
        "models": {"policy": policy} | ({"judge": judge} if judge else {}) | more,
        "tasks": {"path": "tasks.jsonl", "train": 1, "eval": 1},
        "propose": {"candidates": 2},
        "simulate": {"exchanges": 2, "futures": 1},
        "judge": {"questions": {"asks": {"ask": "Does it ask?", "scope": "reply"}}},
        "remote": {"retries": 1, "timeout": 5},
        "cache": str(tmp_path / "store"),
    }
    recipe_file.write_text(yaml.safe_dump(content))
    (tmp_path / "run").mkdir(exist_ok=True)
    return Run(tmp_path / "run", load_recipe(recipe_file))


def plays_all(asked: Asked) -> Reply:
    """A model for every role."""
    if asked.path == "/tokenize":
        return Reply({"tokens": asked.body["content"].split()})
    if asked.body["max_tokens"] == 1:
        return Reply(listing(Yes=-0.4, No=-1.2))
    text = f"Which one, {asked.body['seed']}?"
    usage = {"prompt_tokens": 12, "completion_tokens": 3}
    return Reply(said(text) if "messages" in asked.body else {"choices": [{"text": text}], "usage": usage})


@pytest.fixture
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINICOLLAB_CACHE", raising=False)


@pytest.mark.usefixtures("_own_store")
def test_a_server_plays_all_roles_dies_and_nothing_is_lost(serve: Serve, tmp_path: Path) -> None:
    def plays_eight(asked: Asked) -> Reply:
        """Messages, that is: the judge is asked often before there is one."""
        played = [a for a in first.answered if "max_tokens" in a.body and a.body["max_tokens"] > 1]
        return plays_all(asked) if len(played) < 8 else Reply("", cut=True)

    first = serve(plays_eight)
    run = a_run(tmp_path, f"{first.url}#tiny")
    with pytest.raises(ModelError, match="gave no answer after 2 tries"):
        run_stage(run, "simulate")
    first.kill()
    second = serve(plays_all, port=first.port)
    assert run_stage(run, "simulate")["candidates"] == 4

    def requests(asked: list[Asked]) -> list[str]:
        return [json.dumps(a.body) for a in asked if a.path != "/tokenize"]

    assert requests(first.answered)
    assert not set(requests(first.answered)) & set(requests(second.asked))
    assert run.journal()["stages"]["simulate"]["generated_tokens"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("_own_store")
def test_a_stage_that_was_cut_short_is_not_taken_for_what_it_was_before(serve: Serve, tmp_path: Path) -> None:
    host = serve(plays_all)
    run = a_run(tmp_path, f"{host.url}#tiny")
    run_stage(run, "simulate")
    assert is_unchanged(run, "simulate")
    host.kill()
    other = Run(run.folder, run.recipe.model_copy(update={"seed": 7}))
    with pytest.raises(ModelError, match="gave no answer"):
        run_stage(other, "simulate")
    assert not is_unchanged(run, "simulate")


@pytest.mark.usefixtures("_own_store")
def test_the_same_model_in_all_roles_is_one_engine(tmp_path: Path) -> None:
    here, there = "http://127.0.0.1:9/v1#a", "http://127.0.0.1:9/v1#b"
    alone = roles.cast(a_run(tmp_path, here), [], lambda *_: None)
    assert alone.policy.engine is alone.judge.engine is alone.simulator.engine
    two = roles.cast(a_run(tmp_path, here, there), [], lambda *_: None)
    assert two.policy.engine.fingerprint != two.judge.engine.fingerprint


@pytest.mark.usefixtures("_own_store")
@pytest.mark.parametrize("stage", ["train", "export", "eval"])
def test_stages_that_need_weights_say_that_a_server_is_none(tmp_path: Path, stage: str) -> None:
    run = a_run(tmp_path, "http://127.0.0.1:9/v1#tiny")
    (run / "pairs.jsonl").write_text("")
    with pytest.raises(ModelError, match=r"#tiny is a model on a server.*Name a GGUF"):
        run_stage(run, stage)


@pytest.mark.usefixtures("_own_store")
def test_an_adapter_makes_the_policy_another_model_than_the_judge(tmp_path: Path) -> None:
    from tests.test_models import write_gguf

    write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "lora.gguf").write_bytes(write_gguf(tmp_path / "other.gguf", other=1).read_bytes())
    run = a_run(tmp_path, "tiny.gguf", adapter="lora.gguf")
    named = {role: roles.fingerprint(run, role, lambda *_: None) for role in ("policy", "judge")}
    assert named["judge"] == roles.fingerprint(a_run(tmp_path, "tiny.gguf"), "policy", lambda *_: None)
    write_gguf(tmp_path / "lora.gguf", other=2)
    assert len({*named.values(), roles.fingerprint(run, "policy", lambda *_: None)}) == 3
    (tmp_path / "lora.gguf").unlink()
    with pytest.raises(ModelError, match=r"lora\.gguf is not a file"):
        run_stage(run, "simulate")


def test_a_prompt_keys_the_cache_by_its_messages() -> None:
    remote = RemoteEngine("http://127.0.0.1:9/v1#a", recipe.Remote(context=4096))
    assert remote.chat(HI) == (Segment("user", control=True), Segment("hi"))
    assert remote.plain("x") == (Segment("x"),) and remote.context == 4096
    other = RemoteEngine("http://127.0.0.1:9/v1/#a", recipe.Remote())
    assert remote.fingerprint == other.fingerprint
    assert remote.fingerprint != RemoteEngine("http://127.0.0.1:9/v1#b", recipe.Remote()).fingerprint
