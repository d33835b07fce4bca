"""Presets: plain transformers models, the same from the same seed, and the orthogonal start copies from the first step."""

import pytest
import torch

from jieyue.errors import InputError
from jieyue.hf.classic_presets import build_classic
from jieyue.hf.presets import PRESETS, STARTS, build, preset_config, start_weights
from jieyue.hf.tokenizers import learn_vocabulary, make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    letters = [f"{a}{b}" for a in "abcdefghijklmnop" for b in "qrstuvwxyz"]
    return make_tokenizer(learn_vocabulary([" ".join(letters)] * 3))


@pytest.mark.parametrize("name", PRESETS)
def test_configuration(name, tokenizer):
    config = preset_config(name, tokenizer)
    assert config.max_position_embeddings == 8192 and config.tie_word_embeddings
    assert config.vocab_size == len(tokenizer) and config.mask_token_id == tokenizer.mask_token_id
    assert preset_config(name, tokenizer, num_hidden_layers=1).num_hidden_layers == 1


@pytest.mark.parametrize("start", STARTS)
def test_weights_come_from_the_seed(start, tokenizer):
    first, again, other = (build("tiny", tokenizer, start=start, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].ndim == 2)


def test_start_weights_are_what_they_are_called(tokenizer):
    model = build("tiny", tokenizer)
    embedding = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is embedding
    assert abs(float(embedding.detach().std()) - 0.08) < 0.002
    for layer in model.model.layers:
        product = layer.self_attn.o_proj.weight @ layer.self_attn.v_proj.weight
        assert torch.allclose(product, torch.eye(len(product)) / 4, atol=1e-5)
    normal = build("tiny", tokenizer, start="normal").model.layers[0].self_attn
    product = normal.o_proj.weight @ normal.v_proj.weight
    assert not torch.allclose(product, torch.eye(len(product)) / 4, atol=0.05)


def copying(model, tokenizer):
    """How much better the [MASK]s predict the tokens of the passage than tokens that are not there (logits)."""
    words = [token for token in range(5, len(tokenizer)) if tokenizer.convert_ids_to_tokens(token).isalpha()]
    generator = torch.Generator().manual_seed(0)
    gaps = []
    for _ in range(20):
        drawn = torch.tensor(words)[torch.randperm(len(words), generator=generator)]
        row = torch.cat([torch.tensor([2, 4, 4, 4, 4, 3]), drawn[:20], torch.tensor([3])])
        with torch.no_grad():
            logits = model(input_ids=row[None]).logits[0, 1:5]
        gaps.append(float(logits[:, drawn[:20]].mean() - logits[:, drawn[20:]].mean()))
    return sum(gaps) / len(gaps)


def test_the_orthogonal_start_copies(tokenizer):
    """The broken twin is the normal start, which at first has no idea of copying."""
    orthogonal, normal = (copying(build("tiny", tokenizer, start=start), tokenizer) for start in STARTS)
    assert orthogonal > 0.1 and abs(normal) < 0.03


def classic_attentions(model):
    """(query, key, value, output projection) of every attention of an ALBERT or a BERT."""
    own = [one for one in model.modules() if hasattr(one, "query") and hasattr(one, "dense")]
    others = [one for one in model.modules() if hasattr(getattr(one, "self", None), "query")]
    return [(one.query, one.key, one.value, one.dense) for one in own] + [
        (one.self.query, one.self.key, one.self.value, one.output.dense) for one in others
    ]


@pytest.mark.parametrize(("name", "attentions"), [("albert-tiny", 1), ("bert-tiny", 4)])
def test_the_classic_ones_start_likewise(name, attentions, tokenizer):
    """The orthogonal start is their own too; with the normal one nothing holds of it. The same seed gives the same weights."""
    copying, again, normal = (
        build_classic(name, tokenizer, start=start) for start in ("orthogonal-copy", None, "normal")
    )
    assert all(torch.equal(one, other) for one, other in zip(copying.parameters(), again.parameters(), strict=True))
    assert len(classic_attentions(copying)) == attentions
    for model, holds in ((copying, True), (normal, False)):
        for query, key, value, output in classic_attentions(model):
            product = output.weight @ value.weight
            assert torch.allclose(product, torch.eye(len(product)) / 4, atol=1e-5) is holds
            assert torch.equal(query.weight, key.weight) is holds
        head = [one for at, one in model.named_modules() if at.endswith(("predictions.dense", "transform.dense"))]
        assert [torch.equal(one.weight, torch.eye(128)) for one in head] == [holds]
    with pytest.raises(InputError, match="orthogonal-copy, normal"):
        build_classic(name, tokenizer, start="zeros")


def test_saved_model_is_plain(tokenizer, tmp_path, fresh):
    model = build("tiny", tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    code = (
        "import sys, torch; from transformers import AutoModelForMaskedLM, AutoTokenizer\n"
        f"model, tokenizer = (kind.from_pretrained({str(tmp_path)!r}) for kind in (AutoModelForMaskedLM, AutoTokenizer))\n"
        "assert not [name for name in sys.modules if name.startswith('jieyue')]\n"
        "logits = model(**tokenizer('aq bq', 'cr ds', return_tensors='pt')).logits\n"
        "print(type(model).__name__, float(logits.double().square().sum()))"
    )
    done = fresh(code)
    assert done.returncode == 0, done.stderr
    name, total = done.stdout.split()
    logits = model(**tokenizer("aq bq", "cr ds", return_tensors="pt")).logits
    assert name == "EuroBertForMaskedLM"
    assert float(total) == pytest.approx(float(logits.double().square().sum()), rel=1e-5)


def test_room_for_8192_positions(tokenizer):
    model = build("tiny", tokenizer, num_hidden_layers=1)
    row = torch.randint(5, len(tokenizer), (1, 8192))
    with torch.no_grad():
        hidden = model.model(input_ids=row).last_hidden_state
    assert hidden.shape == (1, 8192, 128) and bool(torch.isfinite(hidden).all())


def test_refusals(tokenizer):
    with pytest.raises(InputError, match="tiny, small, base"):
        preset_config("huge", tokenizer)
    with pytest.raises(InputError, match="orthogonal-copy, normal"):
        build("tiny", tokenizer, start="zeros")
    with pytest.raises(InputError, match="0 layers with v_proj"):
        start_weights(torch.nn.Linear(2, 2), "orthogonal-copy")
    bare = make_tokenizer(learn_vocabulary(["a b"]))
    bare.mask_token = None
    with pytest.raises(InputError, match="without mask_token"):
        preset_config("tiny", bare)
