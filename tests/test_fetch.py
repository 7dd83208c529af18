"""`minicollab fetch` against a server that answers as the hub does: its endpoints, not its contents."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from tests.test_models import write_gguf

pytestmark = pytest.mark.slow  # each a process of its own, with huggingface_hub

NAME = "hf:owner/repo/tiny.gguf"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """`files` by repository and name. After `breaks_after` bytes of an answer the line is cut, once.
    `asked`: what was got, with the range that was asked for."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    breaks_after: int | None = None
    lies: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._resolve(body=False)

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            repo = "/".join(self.path.split("/")[3:5])
            held = {n.removeprefix(repo + "/"): f for n, f in self.hub.files.items() if n.startswith(repo)}
            tree = [{"type": "file", "path": name, "size": len(f), "oid": COMMIT} for name, f in held.items()]
            about = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in held]}
            answer = json.dumps(tree if "/tree/" in self.path else about).encode()
            self._head(200, len(answer), {"Content-Type": "application/json"})
            self.wfile.write(answer)
        else:
            self._resolve(body=True)

    def _resolve(self, body: bool) -> None:
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        content = self.hub.files.get(f"{repo}/{rest.partition('/')[2]}")
        if content is None:
            self._head(404, 0, {"X-Error-Code": "EntryNotFound"})
            return
        digest = hashlib.sha256(b"another file" if self.hub.lies else content).hexdigest()
        about = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"', "X-Linked-ETag": f'"{digest}"'}
        about |= {"X-Linked-Size": str(len(content)), "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").partition("-")[0] or 0) if wanted else 0
        if start:
            about["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._head(206 if start else 200, len(content) - start, about)
        if body:
            self.hub.asked.append((self.path.rpartition("/")[2], wanted))
            cut, self.hub.breaks_after = self.hub.breaks_after, None
            self.wfile.write(content[start:][:cut])
            if cut is not None:
                self.close_connection = True

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "hub").mkdir()
    state = Hub(files={"owner/repo/tiny.gguf": write_gguf(tmp_path / "hub/tiny.gguf").read_bytes()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": state}))
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "tasks.jsonl").write_text('{"opening": "Help me.", "details": ["soon"]}\n' * 2, "utf-8")
    path = tmp_path / "recipe.yaml"
    asked = {
        "name": "tiny",
        "models": {"policy": NAME},
        "tasks": {"path": "tasks.jsonl", "train": 1, "eval": 1},
    }
    path.write_text(yaml.safe_dump(asked | {"judge": {"questions": {"asks": {"ask": "Does it ask?"}}}}))
    return path


def fetch(recipe: Path, hub: Hub, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"HF_ENDPOINT": hub.address, "HF_HOME": str(recipe.parent / "hf"), "HF_HUB_DISABLE_XET": "1"}
    own |= {"XDG_CACHE_HOME": str(recipe.parent / "cache")} | environment
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-m", "minicollab", "fetch", str(recipe), *options]
    return subprocess.run(
        command, capture_output=True, text=True, env=inherited | own, check=False, timeout=60
    )


def test_a_model_comes_whole_once_with_its_checksum_beside_it(recipe: Path, hub: Hub) -> None:
    done = fetch(recipe, hub, "--json")
    assert done.returncode == 0, done.stderr
    model, tasks = json.loads(done.stdout)
    assert (model["role"], model["name"], tasks["role"]) == ("policy", NAME, "tasks")
    path, content = Path(model["path"]), hub.files["owner/repo/tiny.gguf"]
    assert path.read_bytes() == content and model["bytes"] == len(content)
    note = path.with_name("tiny.gguf.sha256").read_text("utf-8")
    assert note == f"{hashlib.sha256(content).hexdigest()}  tiny.gguf\n"
    assert "fetching" in done.stderr

    again = fetch(recipe, hub, HF_HUB_OFFLINE="1")
    assert again.returncode == 0 and str(path) in again.stdout
    assert [name for name, _ in hub.asked] == ["tiny.gguf"]


def test_what_broke_off_goes_on_where_it_stopped(recipe: Path, hub: Hub) -> None:
    piece = 10 << 20  # huggingface_hub writes that much at once
    content = hub.files["owner/repo/tiny.gguf"] + bytes(piece + 1)
    hub.files["owner/repo/tiny.gguf"], hub.breaks_after = content, piece + 1
    done = fetch(recipe, hub, "--json")
    if done.returncode:  # it tries again by itself for most faults of a line
        done = fetch(recipe, hub, "--json")
    assert done.returncode == 0, done.stderr
    assert Path(json.loads(done.stdout)[0]["path"]).read_bytes() == content
    assert [wanted for _, wanted in hub.asked] == ["", f"bytes={piece}-"]


def test_a_file_that_is_not_what_the_hub_promised_is_thrown_away(recipe: Path, hub: Hub) -> None:
    hub.lies = True
    done = fetch(recipe, hub)
    assert done.returncode == 4
    assert "the download of tiny.gguf is damaged. Run the same command again" in done.stderr
    assert not list((recipe.parent / "hf").rglob("tiny.gguf"))
    hub.lies = False
    assert fetch(recipe, hub).returncode == 0


def test_offline_one_line_says_what_is_missing_and_where_it_was_looked_for(recipe: Path, hub: Hub) -> None:
    done = fetch(recipe, hub, HF_HUB_OFFLINE="1")
    assert done.returncode == 4 and not hub.asked
    (line,) = done.stderr.strip().splitlines()
    assert NAME in line and str(recipe.parent / "hf/hub") in line and str(recipe.parent / "cache") in line
    assert "HF_HUB_OFFLINE forbids" in line


def test_a_base_to_train_on_comes_with_its_tokenizer_and_without_the_rest(recipe: Path, hub: Hub) -> None:
    wanted = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"weights"}
    rest = {"original/consolidated.00.pth": b"again", "model.bin": b"again"}
    hub.files |= {f"owner/base/{name}": content for name, content in (wanted | rest).items()}
    done = fetch(recipe, hub, "--json", "--set", "models.train_base=owner/base")
    assert done.returncode == 0, done.stderr
    base = next(row for row in json.loads(done.stdout) if row["role"] == "train_base")
    names = {path.name for path in Path(base["path"]).iterdir()}
    assert names == {*wanted, "model.safetensors.sha256"}


def test_what_is_missing_elsewhere_is_told_in_one_line(recipe: Path, hub: Hub) -> None:
    for setting, says in (
        (f"models.policy={NAME.replace('tiny', 'none')}", "cannot be fetched"),
        ("models.judge=none.gguf", "there is no file"),
        ("tasks.path=none.jsonl", "there is no task file"),
    ):
        done = fetch(recipe, hub, "--set", setting)
        assert done.returncode in (3, 4)
        assert says in done.stderr and "Traceback" not in done.stderr
