"""Models as ONNX files: a pattern as a dense mask gives the same outputs, what has none is refused, int8 tells its price."""

import json
import sys
from importlib.util import find_spec

import pytest
import torch

from jieyue.cli import main
from jieyue.errors import InputError, MissingExtra
from jieyue.hf.dense import make_dense
from jieyue.hf.loading import save
from jieyue.hf.presets import build
from jieyue.hf.tiny import tiny_config, tiny_model
from jieyue.hf.tokenizers import make_tokenizer
from jieyue.hf.use import use
from jieyue.run.export import Exporting, export_onnx

MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"pip install 'jieyue[onnx]': no {', '.join(MISSING)}")
PATTERNS = ("local(3)+atrous(5)", "first(2)+local(2)", "global(1)+local(2)", "local(2),atrous(4)", "full()")


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits[batch["attention_mask"].bool()]


def rows(tokens=23):
    mask = torch.ones(2, tokens, dtype=torch.long)
    mask[1, tokens - 6 :] = 0
    return {"input_ids": torch.randint(3, 90, (2, tokens)), "attention_mask": mask}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("kind", "bound"), [("bert", 1e-12), ("llama", 1e-5)])  # eager Llama: softmax in float32
def test_a_dense_mask_gives_what_the_pattern_gives(kind, bound, pattern):
    model, batch = tiny_model(tiny_config(kind)), rows()
    plain = logits(model, batch)
    use(model, attention=pattern)
    wanted = logits(model, batch)
    assert len(make_dense(model)) == 2
    assert (logits(model, batch) - wanted).abs().max() <= bound
    assert pattern == "full()" or (wanted - plain).abs().max() > 1e-3  # the broken twin: without the mask
    model = tiny_model(tiny_config(kind))
    use(model, attention="local(1)")
    make_dense(model)
    assert (logits(model, batch) - wanted).abs().max() > 1e-3  # and with another pattern's


def folder_of(tmp_path, attention=None, recipe="classify", head="classification"):
    """A folder as training leaves it, of a model that was never trained."""
    tokenizer = make_tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", "##a"])
    model = build("tiny", tokenizer, head=head)
    if attention is not None:
        use(model, attention=attention)
    settings = {"reader": "prefix"} if recipe == "read" else {}
    save(model, tokenizer, tmp_path / "model", {"recipe": recipe, "settings": settings})
    return tmp_path / "model"


@needs_onnx
@pytest.mark.parametrize(
    ("attention", "recipe", "head", "found"),
    [
        ("linear(elu)", "classify", "classification", r"found linear\(elu\) in .*, which has no dense mask"),
        ("local(2)+linear(elu)", "classify", "classification", r"found local\(2\)\+linear\(elu\)"),
        (None, "read", "masked-lm", "a model that writes \\(prefix\\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:use")
def test_what_is_no_single_pass_with_a_mask_is_refused_by_name(attention, recipe, head, found, tmp_path):
    folder, out = folder_of(tmp_path, attention, recipe, head), tmp_path / "model.onnx"
    with pytest.raises(InputError, match=found):
        export_onnx(Exporting(folder=folder, out=out))
    assert not out.exists() and [one.name for one in tmp_path.iterdir()] == ["model"]


@needs_onnx
def test_a_file_that_is_there_and_other_names_are_refused(tmp_path):
    taken = tmp_path / "model.onnx"
    taken.write_text("mine", encoding="utf-8")
    for out, found in (
        (taken, "--overwrite"),
        (tmp_path / "model.bin", "ends in .onnx"),
        (tmp_path / "no" / "a.onnx", "no folder"),
    ):
        with pytest.raises(InputError, match=found):
            export_onnx(Exporting(folder=tmp_path, out=out))
    with pytest.raises(InputError, match=r"jieyue\.json"):
        export_onnx(Exporting(folder=tmp_path, out=taken, overwrite=True))
    assert taken.read_text(encoding="utf-8") == "mine"


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("jieyue.run.export.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'jieyue\[onnx\]'"):
        export_onnx(Exporting(folder=tmp_path, out=tmp_path / "a.onnx"))


@needs_onnx
@pytest.mark.slow
def test_a_pattern_goes_out_and_comes_back_equal_and_int8_tells_its_price(tmp_path, monkeypatch, capsys):
    out = tmp_path / "small.onnx"
    words = ["export", folder_of(tmp_path, "local(2)+atrous(4)"), "--to", "onnx", "--out", out, "--int8", "--json"]
    monkeypatch.setattr(sys, "argv", ["jieyue", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert not ended.value.code and out.is_file()
    facts = {item["what"]: item["value"] for part in told[0]["sections"] for item in part["items"]}
    assert facts["difference from the model"] <= 1e-5 < facts["difference in int8"] < 0.2
    assert facts["size in int8"] < 0.6 * facts["size"] and facts["size in int8"] == out.stat().st_size
    assert 0 < facts["pairs that local(2)+atrous(4) reads"] < 1 and 0 <= facts["decisions that changed"] <= 1
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model", "small.onnx"]


@needs_onnx
@pytest.mark.slow
def test_outputs_that_differ_leave_no_file(tmp_path, monkeypatch):
    """The broken twin: an exporter that forgets the pattern."""
    monkeypatch.setattr("jieyue.run.export.make_dense", lambda model: use(model, attention=None))
    with pytest.raises(InputError, match="outputs that differ"):
        export_onnx(Exporting(folder=folder_of(tmp_path, "local(1)"), out=tmp_path / "model.onnx"))
    assert [one.name for one in tmp_path.iterdir()] == ["model"]
