"""An OpenAI-compatible endpoint for one GGUF: llama-cpp-python's own server, set up for a person
alone with it."""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minicollab.errors import ModelError, RunError
from minicollab.models import resolve
from minicollab.progress import Progress, silent
from minicollab.run import Run

_NEEDED = ("fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings")
_PATIENCE = 3  # seconds that a reply under way has when the server is stopped


def model_of(named: str, progress: Progress = silent) -> Path:
    """The merged GGUF that the run in the folder `named` exported, or the model of that name.
    MinicollabError if there is none."""
    from minicollab.exporting import trained

    folder = Path(named)
    if not folder.is_dir():
        return resolve(named, Path.cwd(), progress)
    return resolve(str(trained(Run.at(folder))), folder, progress)


def listen(host: str, port: int) -> socket.socket:
    """A socket at this address; port 0 is any that is free. RunError if it cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except UnicodeError:
        raise RunError(f"cannot listen at {host}: it is no host's name", "Choose --host anew.") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise RunError(
                f"port {port} of {host} is in use", f"Take another one: --port {port + 1}."
            ) from None
        raise RunError(
            f"cannot listen at {host}, port {port}: {error.strerror}", "Choose --host and --port anew."
        ) from None


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Given:
    """Settings that come from here alone, and not from variables that happen to be called SEED or
    API_KEY, too."""

    @classmethod
    def settings_customise_sources(cls, _: type, init_settings: Any, **others: Any) -> tuple[Any, ...]:
        return (init_settings,)


@contextmanager
def loaded(gguf: Path, name: str, context: int) -> Iterator[Any]:
    """The server's ASGI application while the model is in memory, one in a process; `context` in
    tokens. ModelError if packages are missing or llama.cpp refuses."""
    missing = [package for package in _NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise ModelError(f"the server needs {', '.join(missing)}", "Run `make setup`.")
    from minicollab.engine.quiet import last_error, quiet
    from minicollab.engine.sizing import check_context, cores, cpu_memory, gpu_memory
    from minicollab.needs.models import read

    quiet()
    check_context(read(gguf).shape, context, gpu_memory() or cpu_memory())
    from jinja2 import TemplateError
    from llama_cpp.server import app as server
    from llama_cpp.server.settings import ModelSettings, ServerSettings

    class Model(_Given, ModelSettings): ...

    class Settings(_Given, ServerSettings): ...

    os.environ.pop("CONFIG_FILE", None)
    model = Model(
        model=str(gguf),
        model_alias=name,
        n_gpu_layers=-1,
        n_ctx=context,
        n_threads=cores(),
        n_threads_batch=cores(),
        chat_format="chat_template.default",  # the GGUF's own; else some are replaced by a guess
        logits_all=False,  # True, the default, keeps a row of logits for every token of the context
        verbose=False,
    )
    # By default a second request breaks off the first one's stream.
    settings = Settings(interrupt_requests=False)
    try:
        app = server.create_app(server_settings=settings, model_settings=[model])
    except (ValueError, RuntimeError) as error:
        raise ModelError(
            f"llama.cpp cannot serve {gguf.name}: {error} ({last_error()})", "Try a smaller --context."
        ) from None
    except TemplateError as error:
        raise ModelError(
            f"the chat template of {gguf.name} cannot be read: {error}", "Use another GGUF."
        ) from None
    try:
        yield app
    finally:  # not when Python ends: llama.cpp logs meanwhile, and nobody would be there to hear it
        server._llama_proxy.free()


def run_server(app: Any, listening: socket.socket) -> None:
    """Answer until Ctrl-C or SIGTERM; replies under way may end."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_PATIENCE)
    uvicorn.Server(config).run(sockets=[listening])
