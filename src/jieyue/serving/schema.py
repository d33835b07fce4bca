"""The OpenAPI schema at /openapi.json: every endpoint that this server has, its body and its answer."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import BaseModel, JsonValue
from pydantic.json_schema import models_json_schema

from jieyue import __version__

from .answering import BODIES
from .requests import ChatBody, CompletionBody

__all__ = ["schema"]


class Label(BaseModel):
    """A label and the model's probability of it."""

    label: str
    probability: float


class Classified(BaseModel):
    """What one text is: its likeliest label, how sure the model is, and up to six labels, likeliest first."""

    label: str
    confidence: float
    labels: list[Label]


class LabelOfSeveral(Label):
    """A label of a model that tells any number of them: it is told from ``threshold`` on."""

    threshold: float


class ClassifiedSet(BaseModel):
    """Of a model of several labels: those of one text, how sure the model is of exactly these, and all labels, likeliest first."""

    answer: list[str]
    confidence: float
    labels: list[LabelOfSeveral]


class EstimatedNumber(BaseModel):
    """Of a model whose labels are numbers."""

    value: float


class ClassifyAnswer(BaseModel):
    """One answer for each text, in order; all of the shape that the model's labels have."""

    answers: list[Classified] | list[ClassifiedSet] | list[EstimatedNumber]
    model: str


class Entity(BaseModel):
    """``text`` is the request's text[start:end], in characters."""

    start: int
    end: int
    type: str
    text: str


class Tagged(BaseModel):
    """One text's entities, in order; ``confidence``: the lowest probability among its words' tags."""

    entities: list[Entity]
    confidence: float | None


class TagAnswer(BaseModel):
    """One answer for each text, in order."""

    answers: list[Tagged]
    model: str


class Rival(BaseModel):
    """Another answer, and its vote."""

    answer: str
    vote: float


class ReadAnswer(BaseModel):
    """``answer`` is ``passages[passage][start:end]``, in characters; empty, with passage -1, where the passages hold none."""

    answer: str
    passage: int
    start: int
    end: int
    confidence: float
    vote: float
    rivals: list[Rival]
    model: str


class TitleAnswer(BaseModel):
    """The title; ``finished`` is false where it was cut, ``source_truncated`` true where the text was."""

    title: str
    log_probability: float
    finished: bool
    source_truncated: bool
    model: str


class ErrorDetail(BaseModel):
    """What was wrong, of which kind, in which argument."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """The shape of every error."""

    error: ErrorDetail


ANSWERS: dict[str, type[BaseModel]] = {
    "read": ReadAnswer,
    "title": TitleAnswer,
    "classify": ClassifyAnswer,
    "tag": TagAnswer,
}


def schema(kinds: Collection[str]) -> dict[str, JsonValue]:
    """The schema of a server with models of these kinds."""
    posts: dict[str, tuple[type[BaseModel], type[BaseModel] | None]] = {}
    if "chat" in kinds:
        posts |= {"/v1/chat/completions": (ChatBody, None), "/v1/completions": (CompletionBody, None)}
    posts |= {f"/v1/{kind}": (BODIES[kind][0], ANSWERS[kind]) for kind in BODIES if kind in kinds}
    used: set[type[BaseModel]] = {Error, *(one for pair in posts.values() for one in pair if one is not None)}
    refs, definitions = models_json_schema(
        [(one, "validation") for one in sorted(used, key=lambda one: one.__name__)],
        ref_template="#/components/schemas/{model}",
    )
    told = {one: refs[one, "validation"] for one in used}
    failed: JsonValue = {"description": "An error", "content": {"application/json": {"schema": told[Error]}}}
    paths: dict[str, JsonValue] = {}
    for path, about in (("/health", "Whether it lives"), ("/v1/models", "The models"), ("/metrics", "Prometheus")):
        paths[path] = {"get": {"summary": about, "responses": {"200": {"description": about}}}}
    for path, (body, answer) in posts.items():
        shape: JsonValue = told[answer] if answer else {"type": "object"}
        about = (answer.__doc__ or "") if answer else "OpenAI's answer, whole or as server-sent events"
        paths[path] = {
            "post": {
                "summary": (body.__doc__ or "").strip(),
                "requestBody": {"required": True, "content": {"application/json": {"schema": told[body]}}},
                "responses": {
                    "200": {"description": about, "content": {"application/json": {"schema": shape}}},
                    "default": failed,
                },
            }
        }
    info: JsonValue = {"title": "jieyue", "version": __version__}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": definitions["$defs"]}}
