"""Classifiers of several labels and of numbers, and taggers, over HTTP: what ``jieyue predict`` tells, in the documented shape."""

import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from serving_models import app_of
from starlette.testclient import TestClient

from jieyue import __version__
from jieyue.hf.classic_presets import build_classic
from jieyue.hf.loading import save
from jieyue.hf.tokenizers import learn_vocabulary, make_tokenizer
from jieyue.run.predict import predict
from jieyue.serving.schema import schema
from jieyue.serving.server import open_models
from jieyue.tasks.classify.settings import ClassifySettings
from jieyue.tasks.table import task
from jieyue.tasks.tag.settings import TagSettings

TEXTS = ["Ann lives in Springfield, 北京 too.", "Bob"]
KINDS = {
    "sets": (
        "classify",
        ClassifySettings(problem="multi-label", labels=("sea", "sun"), thresholds="sea=0.01,sun=0.99"),
    ),
    "numbers": ("classify", ClassifySettings(problem="regression")),
    "tagger": ("tag", TagSettings(types=("PER", "LOC"))),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models with random weights, saved as training saves them."""
    place, tokenizer = tmp_path_factory.mktemp("kinds"), make_tokenizer(learn_vocabulary(TEXTS * 3, 60))
    for name, (kind, settings) in KINDS.items():
        job = task(kind)
        model = build_classic("bert-tiny", tokenizer, head=job.head, **job.model_config(settings))
        save(model, tokenizer, place / name, {"recipe": kind, "version": __version__, "settings": settings.to_dict()})
    return [place / name for name in KINDS]


@pytest.fixture(scope="module")
def client(folders):
    with TestClient(app_of(open_models(folders)), base_url="http://127.0.0.1:8000") as found:
        yield found


def answers(client, path, name):
    found = client.post(path, json={"texts": TEXTS, "model": name})
    assert found.status_code == 200 and found.json()["model"] == name, found.text
    return found.json()["answers"]


def test_several_labels(client, folders):
    for own, row in zip(answers(client, "/v1/classify", "sets"), predict(folders[0], TEXTS), strict=True):
        assert own["answer"] == list(row["answer"]) == ["sea"]
        assert own["confidence"] == pytest.approx(row["confidence"], abs=1e-4)
        shares = {one["label"]: one["probability"] for one in own["labels"]}
        assert {one["label"]: one["threshold"] for one in own["labels"]} == {"sea": 0.01, "sun": 0.99}
        assert list(shares.values()) == sorted(shares.values(), reverse=True) and set(shares) == {"sea", "sun"}


def test_numbers(client, folders):
    found = answers(client, "/v1/classify", "numbers")
    assert [one["value"] for one in found] == pytest.approx([row["answer"] for row in predict(folders[1], TEXTS)])
    assert all(set(one) == {"value"} for one in found)


def test_entities(client, folders):
    for text, own, row in zip(TEXTS, answers(client, "/v1/tag", "tagger"), predict(folders[2], TEXTS), strict=True):
        assert own["entities"] == list(row["answer"]) and own["confidence"] == pytest.approx(
            row["confidence"], abs=1e-4
        )
        assert all(text[one["start"] : one["end"]] == one["text"] for one in own["entities"])
    assert client.post("/v1/tag", json={"text": TEXTS[1]}).json()["answers"][0] == own
    for wrong in ({}, {"text": ""}, {"texts": [1]}, {"text": "a", "x": 1}):
        assert client.post("/v1/tag", json=wrong).status_code == 400


def test_the_answers_are_as_the_schema_says(client):
    """Every shape that is given stands in it, name by name; the tagger has a page."""
    found = client.get("/openapi.json").json()
    assert found == schema({"classify", "tag"}) and {"/v1/classify", "/v1/tag"} <= set(found["paths"])
    shapes = found["components"]["schemas"]
    told = {
        "ClassifiedSet": answers(client, "/v1/classify", "sets")[0],
        "EstimatedNumber": answers(client, "/v1/classify", "numbers")[0],
        "Tagged": answers(client, "/v1/tag", "tagger")[0],
    }
    for name, own in told.items():
        assert set(shapes[name]["required"]) == set(own)
    assert client.get("/tag").status_code == client.get("/classify").status_code == 200
    assert client.get("/read").status_code == 404
