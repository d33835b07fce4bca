"""``jieyue serve DIR…``: models over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jieyue.errors import InputError

from .console import Console
from .options import AsJson

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Registers the verb."""
    app.command("serve")(serve)


def serve(
    folders: Annotated[list[Path], typer.Argument(help="Folders of models, each served under its folder's name.")],
    host: Annotated[
        str, typer.Option(help="Address to listen at. Anything but loopback is open to others.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.")] = 8000,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A further name that clients may use for this server.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Another site whose pages may ask, such as https://app.example; * is any, without a key."),
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="A file with the key that clients must send.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of talk and reply; more lose whole oldest turns.")] = None,
    max_tokens: Annotated[int, typer.Option(help="The longest reply that may be asked for.")] = 1024,
    rows: Annotated[int, typer.Option(help="Replies made at once.")] = 32,
    waiting: Annotated[int, typer.Option(help="Requests that may wait; more are refused (429).")] = 64,
    connections: Annotated[int, typer.Option(help="Connections open at once; the one idle longest goes.")] = 256,
    as_json: AsJson = False,
) -> None:
    """Serve models: OpenAI's protocol under /v1, a chat page at /. Needs jieyue[serve]. Ctrl-C finishes what was begun."""
    from jieyue.serving.bounds import Bounds
    from jieyue.serving.guard import allowed_origins
    from jieyue.serving.server import folder_names, listen, open_models, read_key
    from jieyue.serving.server import serve as run_server

    if min(max_tokens, rows, waiting, connections) < 1 or (context is not None and context < 2):
        found = f"max-tokens={max_tokens}, rows={rows}, waiting={waiting}, connections={connections}, context={context}"
        raise InputError(f"{found}: expected at least 1 (context 2)")
    console = Console(as_json)
    bounds = Bounds(reply_tokens=max_tokens, rows=rows, waiting=waiting, connections=connections)
    key = None if api_key_file is None else read_key(api_key_file)
    allowed_origins(allow_origin or (), key)
    folder_names(folders)
    for one in listen(host, port):  # a port in use is told before the models are opened
        one.close()
    models = open_models(folders, bounds, context)
    if key is None and host not in ("127.0.0.1", "localhost", "::1"):
        console.say(f"Anyone who can reach {host} may use this server: no --api-key-file was given")

    def ready(url: str) -> None:
        if as_json:
            console.fact("serving", models=[model.name for model in models], page=url, openai=f"{url}v1")
            return
        console.say(f"Serving {', '.join(model.name for model in models)}\n  page    {url}\n  OpenAI  {url}v1")

    run_server(
        models,
        host=host,
        port=port,
        allow_hosts=allow_host or (),
        allow_origins=allow_origin or (),
        key=key,
        bounds=bounds,
        ready=ready,
    )
