"""Models on the hub: what goes up is listed first, nothing of the training data leaves, the licence is the true one or none."""

import base64
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import yaml
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from jieyue.cli import main
from jieyue.errors import InputError
from jieyue.hf.loading import save
from jieyue.hf.presets import build
from jieyue.hf.tokenizers import make_tokenizer
from jieyue.report import Example, Picture, Report
from jieyue.report.quotations import LEFT_OUT, without_quotations
from jieyue.run.cards import card_of, write_card
from jieyue.run.push import push
from jieyue.tasks.table import task

SECRET = "Zanzibar"
BASE = {"README.md": "---\nlicense: other\nlicense_name: tiny-1\nlanguage: en\n---\n# Base\n"}


class Hub(BaseHTTPRequestHandler):
    """The few routes of the hub that one commit takes. ``server``: repositories by name, each private or not, and its files."""

    def answer(self, code, content=b"{}", **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self):
        self.server.asked.append((self.command, self.path, self.headers.get("Authorization")))
        if self.path == "/big/base/resolve/main/README.md":
            told = BASE["README.md"].encode()
            self.answer(200, told, ETag='"a"', X_Repo_Commit="c" * 40)
        elif (name := self.path.removeprefix("/api/models/")) in self.server.repositories:
            self.answer(200, {"id": name, "private": self.server.repositories[name]["private"]})
        else:
            self.answer(404, b"", X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.command, self.path, self.headers.get("Authorization")))
        if self.server.forbids and self.path != "/api/validate-yaml":
            self.answer(403, {"error": "You have no right to write here"}, X_Error_Message="no right to write here")
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.repositories[name] = {"private": asked.get("visibility") == "private", "files": {}}
            self.answer(200, {"url": f"http://{self.headers['Host']}/{name}"})
        elif "/preupload/" in self.path:
            files = [one["path"] for one in json.loads(body)["files"]]
            told = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in files]
            self.answer(200, {"files": told})
        else:
            name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repositories[name]["files"][line["value"]["path"]] = content
            self.answer(200, {"commitUrl": f"http://{self.headers['Host']}/{name}/commit/1", "commitOid": "1"})

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repositories, server.asked, server.forbids = {}, [], False
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_ours")
    close_session()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    close_session()


def told():
    """A report that quotes the data in every way in which reports do."""
    report = Report("Classifier · tiny")
    report.section("Quality").fact("accuracy", 0.5, "share").examples(
        [Example(question=f"where is {SECRET}?", passage=SECRET)]
    )
    report.section("Each").table(["text", "label", "found"], [[SECRET, "a", "b"]], title="Classified examples")
    report.section("Each").table(["label", "examples"], [["sports", 3]]).picture(
        Picture.bars("Accuracy", {"ours": 0.5})
    )
    report.section("Data").fact("who is who", f"{SECRET} = user").table(["record and reason"], [[f"1: {SECRET}"]])
    report.section("Data").table(["who", "says"], [["user", SECRET]])
    report.section("Titles").table(["source", "its title", "written"], [[SECRET, "b", "c"]])
    report.section("Settings").fact("command", "jieyue train classify --data x.tsv")
    return report


def folder_of(place, model="tiny"):
    """A folder as a finished run leaves it, of a model that was never trained."""
    folder = place / "model"
    tokenizer = make_tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", "##a"])
    record = {"recipe": "classify", "settings": {}, "model": model}
    save(build("tiny", tokenizer, head="classification"), tokenizer, folder, record)
    report = told()
    report.save(folder)
    write_card(report, task("classify"), folder, "jieyue train classify --data x.tsv", model)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "rows.jsonl").write_text(SECRET, encoding="utf-8")
    for name in ("training_memory.json", "train.tsv", "training.json"):
        (folder / name).write_text(SECRET, encoding="utf-8")
    return folder


def header(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_a_card_quotes_nothing_and_names_no_licence_that_nobody_gave(tmp_path):
    card = (folder_of(tmp_path) / "README.md").read_text(encoding="utf-8")
    assert SECRET not in card and LEFT_OUT in card and "sports" in card and "accuracy" in card
    assert header(card) == {
        "library_name": "transformers",
        "tags": ["jieyue", "text-classification"],
        "pipeline_tag": "text-classification",
    }
    whole = card_of(told(), task("classify"), "m", "c", {}, quote=True)
    assert SECRET in whole and LEFT_OUT not in whole  # the broken twin
    assert SECRET not in without_quotations(told()).json() and SECRET in told().json()


def test_what_goes_up_is_listed_first_and_the_data_stay(hub, tmp_path, monkeypatch, capsys):
    folder = folder_of(tmp_path, "big/base")
    monkeypatch.setattr(sys, "argv", ["jieyue", "push", str(folder), "ann/model", "--private", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    output = capsys.readouterr()
    events = [json.loads(line) for line in output.out.splitlines()]
    assert not ended.value.code, output.err
    sent = hub.repositories["ann/model"]
    listed = {one["file"] for one in events if one["event"] == "What goes up"}
    names = {"README.md", "config.json", "jieyue.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(sent["files"]) == listed == names and sent["private"]
    assert [one["event"] for one in events][-3:] == ["stays here", "license", "pushed"]
    assert "checkpoints/, report.html, report.json, train.tsv, training.json, training_memory.json" in str(events)
    assert not [name for name, content in sent["files"].items() if SECRET.encode() in content]
    assert sent["files"]["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    card = sent["files"]["README.md"].decode()
    assert header(card) | {"tags": []} == {
        "base_model": "big/base",
        "license": "other",
        "license_name": "tiny-1",
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": [],
    }
    assert "hf download ann/model --local-dir model" in card
    assert {token for _, path, token in hub.asked if "/commit/" in path} == {"Bearer hf_ours"}


def test_a_licence_that_is_given_and_quotations_that_are_asked_for(hub, tmp_path):
    folder = folder_of(tmp_path, "big/base")
    pushed = push(folder, "ann/model", license="mit", quote=True)
    files = hub.repositories["ann/model"]["files"]
    assert pushed.is_new and pushed.url.endswith("/ann/model") and pushed.license == "mit"
    assert header(files["README.md"].decode())["license"] == "mit" and "license_name" not in pushed.card
    assert SECRET.encode() in files["README.md"] and {"report.html", "report.json"} <= set(files)
    assert not hub.repositories["ann/model"]["private"] and "train.tsv" not in files
    assert not push(folder, "ann/model").is_new  # a commit on top of the one before


def test_refused_before_anything_is_sent(hub, tmp_path, monkeypatch, capsys):
    folder = folder_of(tmp_path)
    hub.repositories["ann/open"] = {"private": False, "files": {}}
    for asked, options, found in (
        ("ann", {}, "expected OWNER/NAME"),
        ("ann/../b", {}, "expected OWNER/NAME"),
        ("ann/m", {"license": "Apache 2"}, "apache-2.0"),
        ("ann/open", {"private": True}, "found a repository that is public, expected a private one"),
        ("ann/m", {"card": tmp_path / "no.md"}, "no file"),
    ):
        with pytest.raises(InputError, match=found):
            push(folder, asked, **options)
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMine.\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"README\.md that was edited"):
        push(folder, "ann/m")
    assert not [path for method, path, _ in hub.asked if method == "POST"]
    push(folder, "ann/m", card=folder / "README.md")
    assert hub.repositories["ann/m"]["files"]["README.md"].startswith(b"---\nlicense: mit")
    (folder / "README.md").unlink()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(sys, "argv", ["jieyue", "push", str(folder), "ann/x"])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.count("\n") == 1 and "hf auth login" in told
    assert push(folder, "ann/x", dry_run=True).url == "" and "ann/x" not in hub.repositories


def test_what_the_hub_refuses_is_one_line(hub, tmp_path):
    hub.forbids = True
    with pytest.raises(InputError, match="no right to write here") as told:
        push(folder_of(tmp_path), "ann/model")
    assert "\n" not in str(told.value)


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no jieyue\.json"):
        push(tmp_path, "ann/model", dry_run=True)
    folder = folder_of(tmp_path)
    (folder / "report.json").unlink()
    with pytest.raises(InputError, match=r"no report\.json"):
        push(folder, "ann/model", dry_run=True)
