"""Claims on pretrained weights: told from the folder, refused at the door, judged both ways round, kept and told like the others."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, T5Config, ViTConfig

from jieyue.errors import InputError
from jieyue.evidence.articles import choose
from jieyue.evidence.claims import FAILS, HOLDS, SCALES, UNDECIDED, UNTESTED, Result
from jieyue.evidence.pages import build, publish, published
from jieyue.evidence.pretrained import accumulation, beams, dialogue, embeddings, entropies, patterns, reading
from jieyue.evidence.pretrained.pages import BESIDE, PART
from jieyue.evidence.pretrained.table import TEMPLATES, choose_on, left_out, template_of
from jieyue.evidence.pretrained.template import bind
from jieyue.evidence.pretrained.weights import Weights, open_weights
from jieyue.evidence.running import Outcome, digest, measure
from jieyue.hf.loading import load
from jieyue.hf.tokenizers import make_tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAPS = [one for own in entropies.MAPS.values() for one in own]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'-()"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A random BERT and a random Llama, with a tokenizer of letters."""
    place = tmp_path_factory.mktemp("weights")
    words = [*SPECIAL, *LETTERS, *(f"##{one}" for one in LETTERS)]
    (place / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = make_tokenizer(place / "vocab.txt")
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 512, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    torch.manual_seed(0)
    made = {
        "bert": BertModel(BertConfig(**sizes)),
        "llama": LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=1, bos_token_id=2, eos_token_id=3)),
    }
    for name, model in made.items():
        model.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    return {name: place / name for name in made}


@pytest.fixture(scope="module")
def weights(folders):
    return open_weights([folders["bert"], folders["llama"]])


def test_the_kind_is_told_from_the_folder(weights):
    bert, llama = weights
    assert (bert.name, bert.kind, llama.name, llama.kind) == ("bert", "encoder", "llama", "decoder")
    assert bert.facts["activation"] == "gelu" and llama.facts["layers"] == 2
    assert llama.facts["parameters"] == sum(
        p.numel() for p in LlamaForCausalLM.from_pretrained(llama.folder).parameters()
    )
    assert bert.facts["content"] != llama.facts["content"]
    json.dumps([bert.facts, llama.facts])


def test_folders_that_are_no_models_are_refused(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2).save_pretrained(tmp_path / "t5")
    BertConfig().save_pretrained(tmp_path / "bare")
    for given, said in (
        ([tmp_path / "absent"], "no folder"),
        ([tmp_path / "empty"], "config.json"),
        ([tmp_path / "bare"], "no weights"),
        ([folders["bert"], folders["bert"]], "same name"),
    ):
        with pytest.raises(InputError, match=said) as refused:
            open_weights(given)
        assert "\n" not in str(refused.value)
    for name, config in (("picture", ViTConfig()), ("mute", None)):
        place = tmp_path / name
        shutil.copytree(folders["bert"], place)
        if config is None:
            for own in [*place.glob("*token*"), *place.glob("vocab*")]:
                own.unlink()
        else:
            config.save_pretrained(place)
    for given, said in (
        ("picture", "reads no tokens"),
        ("mute", "found no vocabulary, expected tokenizer.json"),
        ("bare/config.json", "found the file"),
    ):
        with pytest.raises(InputError, match=said):
            open_weights([tmp_path / given])
    (tmp_path / "t5" / "model.safetensors").write_bytes((folders["bert"] / "model.safetensors").read_bytes())
    (tmp_path / "t5" / "tokenizer.json").write_bytes((folders["bert"] / "tokenizer.json").read_bytes())
    with pytest.raises(InputError, match="encoder such as BERT"):
        open_weights([tmp_path / "t5"])
    shutil.copytree(folders["llama"], tmp_path / "sparse")
    config = json.loads((tmp_path / "sparse" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "sparse" / "config.json").write_text(json.dumps(config | {"jieyue_attention": "local(4)"}))
    with pytest.raises(InputError, match=r"whose attention is local\(4\)"):
        open_weights([tmp_path / "sparse"])
    (tmp_path / "other").symlink_to(folders["bert"])
    with pytest.raises(InputError, match="same content"):
        open_weights([folders["bert"], tmp_path / "other"])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(folders, tmp_path, wrong):
    """The fault: claims were measured on them, until a beam that found no text was an index error."""
    place = tmp_path / "broken"
    shutil.copytree(folders["llama"], place)
    model = LlamaForCausalLM.from_pretrained(place)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 2] = wrong
    model.save_pretrained(place)
    said = r"not finite numbers in (model.safetensors: )?model.layers.1.mlp.up_proj.weight, expected finite weights"
    for opens in (lambda: open_weights([folders["bert"], place]), lambda: load(place)):
        with pytest.raises(InputError, match=said) as refused:
            opens()
        assert "\n" not in str(refused.value)


def test_what_a_model_cannot_serve_is_left_out_with_the_reason(weights):
    bert, llama = weights
    assert {claim.key for claim in choose_on([bert])} == {
        "pretrained-local.bert", "pretrained-reading.bert", "pretrained-accumulation.bert", "pretrained-gelu.bert",
        "pretrained-entropies.bert",
    }  # fmt: skip
    lines = left_out(weights)
    assert "pretrained-gelu is left out for llama: its activation is silu: there is no GELU to replace" in lines
    assert len(choose_on(weights)) + len(lines) == 2 * len(TEMPLATES)
    assert {claim.article for claim in choose_on(weights)} >= {1, 3, 5, 6, 8}
    assert [claim.key for claim in choose_on(weights, ["6"])] == ["pretrained-gelu.bert"]
    assert [claim.key for claim in choose_on(weights, ["pretrained-patterns"])] == ["pretrained-patterns.llama"]
    with pytest.raises(InputError, match="no GELU to replace"):
        choose_on([llama], ["gelu"])
    for unknown in (["gello"], ["4"]):  # no claim of article 4 takes weights
        with pytest.raises(InputError, match="pretrained-gelu"):
            choose_on(weights, unknown)


def test_claims_are_whole(weights):
    ordinary = {claim.key for claim in choose()}
    assert len({one.claim.key for one in TEMPLATES}) == len(TEMPLATES)
    for template in TEMPLATES:
        assert set(template.beside) <= ordinary and template.claim.key not in ordinary
        assert template_of(template.claim.key + ".x.1") is template and "." not in template.claim.key
        for scale in SCALES:
            for cell in template.claim.cells(scale, (0, 1)):
                assert scale != "minutes" or "data" not in cell.settings
        assert template.claim.cells("minutes", (0, 1)) and template.claim.cells("hour", (0, 1))
    assert all(template_of(key) is None for key in ordinary)


def test_other_weights_are_other_cells(weights):
    template = TEMPLATES[0]
    own = bind(template, weights[0])
    other = bind(template, Weights({**weights[0].facts, "content": "another"}))
    cells = [claim.cells("minutes", (0, 1))[0] for claim in (own, other)]
    assert digest(own, cells[0], None) != digest(other, cells[1], None)
    assert "folder" not in json.dumps(cells[0].settings) and str(weights[0].folder) not in json.dumps(cells[0].settings)


def test_nearest_passages_and_right_words_are_counted():
    found = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1, 0], [0, 1], [0.9, 0.2]]), dim=-1)
    assert embeddings.nearest_is_its_own(found, "aabb") == 0.75  # the last lies nearest to the first
    assert embeddings.nearest_is_its_own(found, "aaaa") == 1.0
    assert beams.share_of_right((5, 5, 6), (5, 7, 5, 5)) == 0.5
    assert beams.share_of_right((1, 2), (3, 4)) == 0.0


def numbers_of(template, good):
    """Numbers of one cell under which the claim holds, or under which it fails."""
    better, worse = (1.0, 0.5) if good else (0.5, 1.0)
    key = template.claim.key
    if key in ("pretrained-local", "pretrained-gelu"):
        names = (embeddings.LOADED, *embeddings.PATTERNS, *embeddings.FORMS)
        found = {f"{one} cosine": 0.999 if good else 0.2 for one in names}
        return found | {f"{one} score": 0.9 for one in names}
    if key == "pretrained-patterns":
        losses = {patterns.FULL: 0.4, patterns.FIRST: worse}
        return {
            f"{one} loss": losses.get(one, better)
            for one in (patterns.FULL, patterns.FIRST, patterns.LOCAL, patterns.SPARSE, patterns.ATROUS)
        }
    if key == "pretrained-reading":
        values = {reading.PRETRAINED: better, reading.FRESH: worse}
        return {f"{way} {what}": value for way, value in values.items() for what in (*reading.NUMBERS, "seconds")}
    if key == "pretrained-accumulation":
        found = {
            f"{way} {what}": 0.9
            for way in accumulation.WAYS
            for what in ("accuracy", "same answers", "apart", "seconds")
        }
        update = {"largest": 1e-15 if good else 0.5, "told": "the same update"}
        found |= {"commonest": 0.5}
        return found | {f"{way} update": update for way in (accumulation.OURS, accumulation.TRAINER)}
    if key == "pretrained-wider-beam":
        found = {f"{width} {what}": 0.5 for width in beams.WIDTHS for what in ("log p", "right")}
        return found | {"likelier and worse": 0.25 if good else 0.0, "likelier and better": 0.1}
    if key == "pretrained-dialogue":
        values = {dialogue.PRETRAINED: worse}
        return {
            f"{arm} {what}": values.get(arm, better)
            for arm in dialogue.ARMS
            for what in ("nats a character", "seconds")
        }
    if key == "pretrained-drawing":
        own = {"top-k 5 bleu_2": better, "top-p 0.9 bleu_2": worse, "top-k 5 dist_2": worse, "top-p 0.9 dist_2": better}
        return own | {f"{way} repetition": 0.0 for way in dialogue.WAYS}
    if key == "pretrained-entropies":
        values = {entropies.SOFTMAX: 1.0, entropies.UNIFORM: 4.0}
        names = (entropies.SOFTMAX, *MAPS, *entropies.BANDED, entropies.UNIFORM)
        return {f"{one} entropy": values.get(one, 3.5 if good else 1.5) for one in names}
    values = dict.fromkeys(entropies.BANDED, worse)
    return {f"{one} loss": values.get(one, better) for one in (entropies.SOFTMAX, *MAPS, *entropies.BANDED)}


def results_of(claim, template, good, scale="minutes", seeds=(0, 1, 2)):
    """Made-up results, a little apart from seed to seed."""
    found = []
    for cell in claim.cells(scale, seeds):
        numbers = {
            name: value + cell.seed * 1e-6 if isinstance(value, float) and value else value
            for name, value in numbers_of(template, good).items()
        }
        command = f"jieyue reproduce --weights {cell.settings['model']['name']} --scale {scale} --seeds 3"
        found.append(Result(cell, numbers, 1.0, command, {"torch": "2"}, "now"))
    return found


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda one: one.claim.key)
def test_each_is_judged_both_ways_round(template):
    claim = bind(template, Weights({"name": "demo", "kind": "decoder"}))
    for good in (True, False):
        verdict = Outcome(claim, "minutes", results_of(claim, template, good)).verdict
        wanted = HOLDS if good else UNDECIDED if template.claim.key == "pretrained-wider-beam" else FAILS
        assert verdict.word == wanted, verdict.why
        assert verdict.rows and all(len(row) == len(verdict.columns) for row in verdict.rows)
    assert Outcome(claim, "minutes", results_of(claim, template, True, seeds=(0,))).verdict.word == UNTESTED


def test_accuracies_of_ways_that_learned_nothing_do_not_hold():
    template = next(one for one in TEMPLATES if one.claim.key == accumulation.KEY)
    claim = bind(template, Weights({"name": "demo", "kind": "encoder"}))
    results = results_of(claim, template, True)
    for result in results:
        result.numbers.update({f"{way} accuracy": result.numbers["commonest"] for way in accumulation.WAYS})
    verdict = Outcome(claim, "minutes", results).verdict
    assert verdict.word != HOLDS and accumulation.CHANCE in verdict.why


def facts(name, kind):
    activation = "gelu" if kind == "encoder" else "silu"
    sizes = {"layers": 2, "hidden": 16, "heads": 2, "positions": 64, "vocabulary": 9, "parameters": 1_000_000}
    return {"name": name, "type": "demo", "kind": kind, "activation": activation, "content": name, **sizes}


def test_they_are_kept_and_told_in_a_part_of_their_own(tmp_path):
    """Two models' cells of one claim lie in two files; the page is made from the files alone, and leads from claim to claim."""
    outcomes = []
    for model in (facts("one-1.0", "encoder"), facts("two", "decoder")):
        for template in TEMPLATES:
            if template.refuses(model) is None:
                claim = bind(template, Weights(model))
                outcomes.append(Outcome(claim, "minutes", results_of(claim, template, True)))
        publish([one for one in outcomes if one.claim.key.endswith(model["name"])], tmp_path)
    kept = {path.name for path in (tmp_path / "results" / "minutes").iterdir()}
    assert {"pretrained-entropies.one-1.0.jsonl", "pretrained-entropies.two.jsonl"} <= kept
    assert {o.claim.key for o in published(tmp_path)} == {o.claim.key for o in outcomes}
    (beam,) = measure(choose(["wider-beam-can-be-worse"]), "minutes", [0, 1], tmp_path / "out")
    publish([beam], tmp_path)
    page = (tmp_path / "reproduction.md").read_text(encoding="utf-8")
    chinese = (tmp_path / "reproduction.zh.md").read_text(encoding="utf-8")
    assert "## 在预训练权重上\n" in chinese and "[在预训练权重上](#在预训练权重上)" in chinese
    assert f"## {PART}\n" in page and f"[{PART}](#on-pretrained-weights)" in page
    assert f"| {BESIDE} | holds | two, scale minutes: A pretrained decoder, taught on true words alone" in page
    assert "pretrained-gelu is left out for two: its activation is silu" in page
    assert "Article 4 is not measured on pretrained weights" in page
    assert "claims that hold, minutes | 1 | of 1;" in page  # the articles' own are counted alone
    sections = [section.title for section in build(published(tmp_path)).sections]
    assert sum(title.startswith(f"{PART}, article") for title in sections) == len(outcomes)
    assert PART not in {section.title for section in build([beam]).sections}


@pytest.mark.slow
@pytest.mark.parametrize(
    "template",
    [one for one in TEMPLATES if one.claim.key != "pretrained-drawing"],  # its cells are those of pretrained-dialogue
    ids=lambda one: one.claim.key,
)
def test_each_is_measured_on_a_tiny_model(template, weights, tmp_path):
    """From the folder to the verdict, at the scale that ships; a random model decides nothing, so no word is asked for."""
    model = next(one for one in weights if template.refuses(one.facts) is None)
    claim = small(bind(template, model))
    (outcome,) = measure([claim], "minutes", [0, 1], tmp_path)
    assert not outcome.missing and len(outcome.results) == 2
    assert outcome.verdict.word in (HOLDS, FAILS, UNDECIDED) and outcome.verdict.rows
    assert not list((tmp_path / "work").iterdir())
    if template.claim.key == "pretrained-accumulation":
        for result in outcome.results:
            assert result.numbers[f"{accumulation.OURS} update"]["largest"] < accumulation.EQUAL
            assert result.numbers[f"{accumulation.OURS} apart"] < 1e-3
            assert result.numbers[f"{accumulation.PLAIN} apart"] < 1e-3  # pieces of one size, a label a row
            assert result.numbers[f"{accumulation.TRAINER} apart"] < 0.3  # AdamW hides how long its gradient is, mostly


SMALLER = {
    "updates": 2,
    "words": 30,
    "articles": 4,
    "tokens": 40,
    "judged": 30,
    "replied": 4,
    "rows": 2,
    "read": 12,
    "written": 6,
}


def small(claim):
    def cells(scale, seeds):
        found = claim.cells(scale, seeds)
        return [
            replace(cell, settings={**cell.settings, **{n: SMALLER[n] for n in SMALLER if n in cell.settings}})
            for cell in found
        ]

    return replace(claim, cells=cells)
