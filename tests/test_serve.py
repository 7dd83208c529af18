"""The server on tiny models: its prompts are ours, and it begins and ends in order."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from minicollab import serve
from minicollab.cli import main
from minicollab.engine.base import Segment
from minicollab.engine.weights import load_weights
from minicollab.errors import ModelError, RunError
from minicollab.schema import Message
from tests.tiny_gguf import FAMILIES, tiny

REPO = Path(__file__).resolve().parents[1]
ASKED = [Message("user", "the rain"), Message("assistant", "is on you"), Message("user", "and then?")]

installed = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in serve._NEEDED),
    reason="llama-cpp-python's server is not installed: make setup",
)


@contextmanager
def model(family: str) -> Iterator[Any]:
    """The server's model, as its chat completions use it."""
    from llama_cpp.server import app

    with serve.loaded(tiny(family), family, 512):
        assert app._llama_proxy
        yield app._llama_proxy()


@installed
@pytest.mark.parametrize("family", FAMILIES)
def test_a_chat_is_asked_in_the_models_own_template(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    with model(family) as llama:
        complete = llama.create_completion

        def note(prompt: list[int], **how: Any) -> Any:
            asked.append(prompt)
            return complete(prompt, **how)

        monkeypatch.setattr(llama, "create_completion", note)
        answer = llama.create_chat_completion([m.as_dict() for m in ASKED], max_tokens=4)
    weights = load_weights(tiny(family), -1)
    assert asked == [weights.tokenize(weights.template.render(ASKED))]
    assert answer["usage"]["prompt_tokens"] == len(asked[0])


@installed
def test_variables_that_mean_other_things_change_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    odd = {
        "API_KEY": "sesame",
        "SEED": "abc",
        "CACHE": str(tmp_path),
        "CONFIG_FILE": "none.json",
        "PORT": "x",
    }
    for name, value in odd.items():
        monkeypatch.setenv(name, value)
    with model("chatml") as llama:
        assert llama.create_completion("a", max_tokens=1)


@installed
def test_the_reply_stops_at_the_models_own_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 3 ends a turn with another token than a text (eos)."""
    vocabulary = load_weights(tiny("llama3"), -1)
    end = vocabulary.tokenize((Segment("<|eot_id|>", control=True),))
    words = iter([*vocabulary.text_tokens("the end"), *end])
    with model("llama3") as llama:
        monkeypatch.setattr(llama, "sample", lambda **how: next(words))
        answer = llama.create_chat_completion([m.as_dict() for m in ASKED], max_tokens=40)
    assert answer["choices"][0]["message"]["content"] == "the end"
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "minicollab", "serve", str(tiny("chatml")), "--port", "0"]
    where = os.environ | {"PYTHONPATH": str(REPO), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=where
    ) as child:
        try:
            assert child.stdout
            said = child.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+/v1", said)
            assert found, said or child.communicate()[1]
            assert f"curl {found[0]}/chat/completions" in child.stdout.readline()
            yield child, found[0]
        finally:
            child.kill()


@installed
def test_a_real_server_answers_streams_and_ends(server: tuple[subprocess.Popen[str], str]) -> None:
    child, url = server
    # Bytes at random are no UTF-8, which is streamed as it can be; so letters.
    how = {"max_tokens": 8, "temperature": 0, "grammar": "root ::= [a-z ]+"}
    body = how | {"messages": [m.as_dict() for m in ASKED]}
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        assert [model["id"] for model in client.get("/models").json()["data"]] == ["chatml"]
        whole = client.post("/chat/completions", json=body).json()["choices"][0]["message"]["content"]
        lines = client.post("/chat/completions", json=body | {"stream": True}).text.splitlines()
        chunks = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert chunks.pop() == "[DONE]"
        parts = [json.loads(chunk)["choices"][0]["delta"].get("content") or "" for chunk in chunks]
        assert "".join(parts) == whole and sum(map(bool, parts)) > 1
        much = [Message("user", "zq" * 4096).as_dict()]
        too_long = client.post("/chat/completions", json=body | {"messages": much})
        assert too_long.status_code == 400 and "4096" in too_long.json()["error"]["message"]
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 0 and "Traceback" not in err


def test_a_port_in_use_and_an_address_that_is_none() -> None:
    with serve.listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(RunError, match=rf"port {port} of 127\.0\.0\.1 is in use\. .*--port"):
            serve.listen("127.0.0.1", port)
        result = CliRunner().invoke(main, ["serve", str(tiny("chatml")), "--port", str(port)])
        assert result.exit_code == 5 and "is in use" in result.stderr.splitlines()[-1]
    with pytest.raises(RunError, match="cannot listen"):
        serve.listen("203.0.113.1", 0)  # kept for documentation: nobody's (RFC 5737)


def test_which_addresses_are_this_machines_own() -> None:
    assert all(map(serve.is_local, ("127.0.0.1", "127.0.0.2", "::1", "localhost")))
    assert not any(map(serve.is_local, ("0.0.0.0", "::", "192.168.1.20", "example.org")))


@installed
def test_the_network_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[socket.socket] = []
    monkeypatch.setattr(serve, "run_server", lambda app, listening: served.append(listening))
    for host, warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        result = CliRunner().invoke(main, ["serve", str(tiny("chatml")), "--port", "0", "--host", host])
        assert (result.exit_code, "warning: " in result.stderr) == (0, warned)
    assert len(served) == 2


def test_missing_packages_and_models_are_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(main, ["serve", "none.gguf"])
    assert result.exit_code == 4 and "none.gguf" in result.stderr.splitlines()[-1]
    monkeypatch.setattr(serve, "_NEEDED", ("no_such_package", "click"))
    with (
        pytest.raises(ModelError, match=r"needs no_such_package\. .*make setup"),
        serve.loaded(tiny("chatml"), "x", 512),
    ):
        raise AssertionError("served")


def test_a_run_serves_its_merged_model(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    merged = tmp_path / "export" / "model-q4_k_m.gguf"
    merged.write_bytes(tiny("chatml").read_bytes())
    (tmp_path / "recipe.yaml").write_text(
        "name: tiny\nmodels: {policy: other.gguf}\ntasks: {path: t.jsonl}\nreward: {weights: {bleu: 1}}\n"
    )
    assert serve.model_of(str(tmp_path)) == merged
