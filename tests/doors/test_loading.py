"""Folders load strictly: missing weights, foreign shapes and wrong names are refused with one clear line."""

import json

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM, BertModel, BertTokenizerFast

from jieyue.hf.loading import load, load_model, read_record, save

CONFIG = {
    "vocab_size": 12,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


@pytest.fixture
def tokenizer(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "节", "约", "！", "##s"]
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(words)})


@pytest.fixture
def folder(tmp_path, tokenizer):
    return save(BertForMaskedLM(BertConfig(**CONFIG)), tokenizer, tmp_path / "model", {"recipe": "read"})


def test_what_is_saved_loads_everywhere(folder):
    ours, tokenizer = load(folder)
    theirs = AutoModelForMaskedLM.from_pretrained(folder).eval()
    ids = tokenizer("节约 a b", return_tensors="pt")["input_ids"]
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert AutoTokenizer.from_pretrained(folder)("节约 a b")["input_ids"] == ids[0].tolist()
    assert read_record(folder) == {"recipe": "read"}
    assert not list(folder.glob(".*"))
    assert not list(folder.glob("*.bin"))


def test_missing_weights_are_refused_with_their_names(tmp_path):
    BertModel(BertConfig(**CONFIG)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no weights for cls\.predictions.*--new-head"):
        load_model(tmp_path)
    assert load_model(tmp_path, new_head=True).num_parameters() > 0


def test_a_layer_inside_is_never_random(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}), encoding="utf-8")
    for new_head in (False, True):
        with pytest.raises(ValueError, match=r"no weights for bert\.encoder\.layer\.1"):
            load_model(folder, new_head=new_head)


@pytest.mark.parametrize("head", ["masked-lm", "classification", None])
def test_weights_without_a_place_are_refused(folder, head):
    """A configuration that names fewer layers than the checkpoint has would drop the rest in silence."""
    BertForMaskedLM(BertConfig(**CONFIG | {"num_hidden_layers": 2})).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"no place for: .*encoder\.layer\.1\..* and 1\d more"):
        load_model(folder, head, new_head=True)


def test_a_bare_encoder_is_never_random_either(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"no weights for encoder\.layer\.1"):
        load_model(folder, None, new_head=True)


def test_other_heads_weights_may_be_left(folder, tmp_path):
    assert load_model(folder, "classification", new_head=True).num_labels == 2
    assert load_model(folder, None, new_head=True).num_parameters() > 0


def test_a_folder_without_vocabulary(tmp_path):
    BertForMaskedLM(BertConfig(**CONFIG)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no vocabulary"):
        load(tmp_path)


def test_other_shapes_are_refused(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 24}), encoding="utf-8")
    with pytest.raises(ValueError, match="intermediate"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("./nowhere/at/all", "no such folder"),
        ("surely-not-a-model-of-anyone", "cannot be loaded as AutoModelForMaskedLM"),
    ],
)
def test_wrong_names(name, found):
    with pytest.raises(ValueError, match=found) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


def test_wrong_folders(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match=r"no jieyue\.json"):
        read_record(tmp_path)
    with pytest.raises(ValueError, match="'masked-lm'"):
        load_model(tmp_path, "masked")
