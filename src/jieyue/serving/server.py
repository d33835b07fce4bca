"""Opens folders and serves them: ``open_models`` and ``serve``. Binds to loopback unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jieyue.data.labelled import Labelled
from jieyue.data.tagged import words_of
from jieyue.errors import InputError, MissingExtra
from jieyue.hf.loading import head_of, load
from jieyue.record import RECORD, read_record
from jieyue.tasks.classify.kinds import Choice, Choices, Estimated
from jieyue.tasks.classify.settings import ClassifySettings
from jieyue.tasks.classify.task import TASK as CLASSIFY
from jieyue.tasks.read.asking import open_reader
from jieyue.tasks.tag.settings import TagSettings
from jieyue.tasks.tag.task import TASK as TAG
from jieyue.tasks.title.settings import TitleSettings
from jieyue.tasks.title.writing import prompts, write_titles

try:
    import fastapi
    import uvicorn
except ImportError:
    raise MissingExtra("fastapi", "serve") from None

from pydantic import JsonValue

from .answering import AnsweringModel, ReadBody, TextsBody
from .app import Served, build_app
from .bounds import Bounds
from .chat_model import ChatModel
from .guard import allowed_hosts, allowed_origins
from .listening import BoundedServer, listen

__all__ = ["folder_names", "listen", "open_model", "open_models", "read_key", "serve"]

assert fastapi and uvicorn


def folder_names(folders: Sequence[str | Path]) -> dict[str, Path]:
    """The names under which these folders are served: their own. ``InputError`` for none, two of one name, or a missing one."""
    names = [Path(folder).resolve().name for folder in folders]
    twice = [name for name in names if names.count(name) > 1]
    if not folders or twice:
        found = f"{twice[0]!r} twice" if twice else "no folder"
        raise InputError(f"serve: found {found}, expected folders of different names")
    for folder in folders:
        if not Path(folder).is_dir():
            raise InputError("serve", f"no folder {str(folder)!r}", "the folder of a trained model")
    return dict(zip(names, map(Path, folders), strict=True))


def open_models(folders: Sequence[str | Path], bounds: Bounds = Bounds(), context: int | None = None) -> list[Served]:
    """The models of these folders; each is served under its folder's name."""
    return [open_model(folder, name, bounds, context) for name, folder in folder_names(folders).items()]


def open_model(folder: str | Path, name: str, bounds: Bounds, context: int | None = None) -> Served:
    """One model, by the task that its folder records; without a record any causal language model."""
    task = read_record(folder).get("recipe") if (Path(folder) / RECORD).is_file() else "chat"
    if task == "read":
        return AnsweringModel(name, "read", _reader(folder), bounds)
    if task == "title":
        return AnsweringModel(name, "title", _titler(folder), bounds)
    if task == "classify":
        return AnsweringModel(name, "classify", _classifier(folder), bounds)
    if task == "tag":
        return AnsweringModel(name, "tag", _tagger(folder), bounds)
    if task in ("chat", "sparsify"):
        if head_of(folder) != "causal-lm":
            raise InputError(f"{folder}: not a causal language model; expected one that writes, or a trained reader")
        return ChatModel(name, *load(folder, "causal-lm"), bounds, context)
    raise InputError(f"{folder}: its task is {task!r}, expected chat, read, title, classify or tag")


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
    allow_origins: Sequence[str] = (),
    key: str | None = None,
    bounds: Bounds = Bounds(),
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serves until SIGINT or SIGTERM; replies in the making are then finished (for at most 30 seconds).

    SIGTERM ends with a return, SIGINT with ``KeyboardInterrupt``; a second signal ends at once. ``InputError`` where nothing
    can listen at that address.
    """
    origins = allowed_origins(allow_origins, key)
    bound = listen(host, port)
    own = int(bound[0].getsockname()[1])
    hosts = allowed_hosts(host, own, allow_hosts)
    app = build_app(models, hosts=hosts, bounds=bounds, key=key, origins=origins)
    url = f"http://{f'[{host}]' if ':' in host else host}:{own}/"

    def abandon() -> None:
        for model in models:
            model.abandon()

    server = BoundedServer(app, bounds, ready=lambda: ready(url), abandon=abandon)
    server.run(bound)
    if server.is_interrupted:
        raise KeyboardInterrupt


def _reader(folder: str | Path) -> Callable[[Mapping[str, JsonValue]], Mapping[str, JsonValue]]:
    ask = open_reader(folder)

    def answer(body: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
        checked = ReadBody.model_validate(body)
        return ask(checked.question, checked.passages)

    return answer


def _titler(folder: str | Path) -> Callable[[Mapping[str, JsonValue]], Mapping[str, JsonValue]]:
    settings = TitleSettings.from_dict(read_record(folder, "title")["settings"])
    model, tokenizer = load(folder, settings.head("prefix"))

    def ask(body: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
        (found,) = write_titles(model, tokenizer, [str(body["text"])], settings)
        return {
            "title": found.text,
            "log_probability": round(found.log_probability, 4),
            "finished": found.finished,
            "source_truncated": bool(prompts([str(body["text"])], tokenizer, settings)[1]),
        }

    return ask


def _classifier(folder: str | Path) -> Callable[[Mapping[str, JsonValue]], Mapping[str, JsonValue]]:
    settings = ClassifySettings.from_dict(read_record(folder, "classify")["settings"])
    model, tokenizer = load(folder, settings.head("classification"))
    thresholds = {}
    if settings.problem == "multi-label":
        thresholds = dict(zip(settings.labels, settings.threshold_of_each(), strict=True))

    def ask(body: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
        texts = TextsBody.model_validate(body).texts
        found = CLASSIFY.answer(model, tokenizer, [Labelled(text) for text in texts], settings)
        return {"answers": [_classified(one, thresholds) for one in found]}

    return ask


def _classified(found: Choice | Choices | Estimated, thresholds: Mapping[str, float]) -> JsonValue:
    """An answer in the shape of its kind: ``schema.Classified``, ``ClassifiedSet``, ``EstimatedNumber``."""
    if isinstance(found, Estimated):
        return {"value": found.value}
    labels: list[JsonValue]
    if isinstance(found, Choices):
        labels = [{"label": own, "probability": round(p, 4), "threshold": thresholds[own]} for own, p in found.shares]
        return {"answer": list(found.labels), "confidence": round(found.confidence, 4), "labels": labels}
    ranked = [(found.label, found.confidence), *found.rivals]
    labels = [{"label": label, "probability": round(p, 4)} for label, p in ranked]
    return {"label": found.label, "confidence": round(found.confidence, 4), "labels": labels}


def _tagger(folder: str | Path) -> Callable[[Mapping[str, JsonValue]], Mapping[str, JsonValue]]:
    settings = TagSettings.from_dict(read_record(folder, "tag")["settings"])
    model, tokenizer = load(folder, settings.head("token-classification"))

    def ask(body: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
        texts = TextsBody.model_validate(body).texts
        answers: list[JsonValue] = []
        for found in TAG.answer(model, tokenizer, [words_of(text) for text in texts], settings):
            sure = None if found.confidence is None else round(found.confidence, 4)
            answers.append({"entities": [dict(one) for one in found.told], "confidence": sure})
        return {"answers": answers}

    return ask
