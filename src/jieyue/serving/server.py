"""Opens folders and serves them: ``open_models`` and ``serve``. Binds to loopback unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jieyue.errors import InputError, MissingExtra
from jieyue.hf.loading import RECORD, head_of, load, read_record
from jieyue.recipes import title as titles
from jieyue.run.reading import open_reader

from .app import Served, build_app
from .guard import allowed_hosts
from .readers import Reader
from .requests import Bounds
from .talkers import Talker

__all__ = ["open_model", "open_models", "read_key", "serve"]


def open_models(folders: Sequence[str | Path], bounds: Bounds = Bounds(), context: int | None = None) -> list[Served]:
    """The models of these folders; each is served under its folder's name."""
    names = [Path(folder).resolve().name for folder in folders]
    twice = [name for name in names if names.count(name) > 1]
    if not folders or twice:
        found = f"{twice[0]!r} twice" if twice else "no folder"
        raise InputError(f"serve: found {found}, expected folders of different names")
    return [open_model(folder, name, bounds, context) for folder, name in zip(folders, names, strict=True)]


def open_model(folder: str | Path, name: str, bounds: Bounds, context: int | None = None) -> Served:
    """One model, by the recipe that its folder records; without a record any causal language model."""
    recipe = read_record(folder).get("recipe") if (Path(folder) / RECORD).is_file() else "chat"
    if recipe == "read":
        return Reader(name, "read", _reader(folder), bounds)
    if recipe == "title":
        return Reader(name, "title", _titler(folder), bounds)
    if recipe == "chat":
        if head_of(folder) != "causal-lm":
            raise InputError(f"{folder}: not a causal language model; expected one that writes, or a trained reader")
        return Talker(name, *load(folder, "causal-lm"), bounds, context)
    raise InputError(f"{folder}: its recipe is {recipe!r}, expected chat, read or title")


def read_key(path: str | Path) -> str:
    """The bearer token that a file holds: one line of at least 16 characters without spaces."""
    try:
        key = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"api-key-file {path}: cannot be read ({type(error).__name__})") from error
    if len(key) < 16 or not key.isascii() or any(char.isspace() for char in key):
        raise InputError(f"api-key-file {path}: expected one line of at least 16 ASCII characters without spaces")
    return key


def serve(
    models: Sequence[Served],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    allow_hosts: Sequence[str] = (),
    key: str | None = None,
    bounds: Bounds = Bounds(),
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serves until SIGINT or SIGTERM; replies in the making are then finished (for at most 30 seconds)."""
    try:
        import uvicorn
    except ImportError:
        raise MissingExtra("uvicorn", "serve") from None
    app = build_app(models, hosts=allowed_hosts(host, port, allow_hosts), bounds=bounds, key=key)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        proxy_headers=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=30,
        h11_max_incomplete_event_size=2**16,
    )

    class Announcing(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/")

    Announcing(config).run()


def _reader(folder: str | Path) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    ask = open_reader(folder)
    return lambda body: ask(body["question"], body["passages"])


def _titler(folder: str | Path) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    settings = titles.TitleSettings.from_dict(read_record(folder, "title")["settings"])
    model, tokenizer = load(folder, settings.head("prefix"))

    def ask(body: Mapping[str, Any]) -> Mapping[str, Any]:
        (found,) = titles.answer(model, tokenizer, [body["text"]], settings)
        return {
            "title": found.text,
            "log_probability": round(found.log_probability, 4),
            "finished": found.finished,
            "source_truncated": bool(titles.prompts([body["text"]], tokenizer, settings)[1]),
        }

    return ask
