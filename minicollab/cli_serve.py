"""`minicollab serve`: the result for any chat front end."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import click

from minicollab.cli_common import display


@click.command("serve")
@click.argument("run_or_gguf")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any.")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0: for the whole network.")
@click.option("--context", type=click.IntRange(512), default=4096, show_default=True, help="In tokens.")
def serve(run_or_gguf: str, port: int, host: str, context: int) -> None:
    """Serve a run's merged model, or a GGUF, to programs that speak OpenAI's protocol."""
    from minicollab.serve import is_local, listen, loaded, model_of, run_server

    with display("serve") as progress:
        gguf = model_of(run_or_gguf, progress)
    name = Path(run_or_gguf).resolve().name if Path(run_or_gguf).is_dir() else gguf.stem
    with listen(host, port) as listening, loaded(gguf, name, context) as app:
        place = f"[{host}]" if ":" in host else host
        url = f"http://{place}:{listening.getsockname()[1]}/v1"
        click.echo(f"{name} at {url} (any API key will do); Ctrl-C stops. Try it:")
        click.echo(
            f"  curl {url}/chat/completions -H 'Content-Type: application/json'"
            """ -d '{"messages": [{"role": "user", "content": "Help me plan a trip."}]}'"""
        )
        if not is_local(host):
            click.echo(
                "warning: whoever can reach this machine can use the model; there is no password.", err=True
            )
        with suppress(KeyboardInterrupt):  # it has ended in order
            run_server(app, listening)
