"""Titles: files in every shape, rows, three kinds of writers, learning by heart, scores, the command line."""

import json
import lzma

import pytest
import torch
import transformers
from test_cli import jieyue

from jieyue.data.titles import Pair, read_titles, shared_pairs
from jieyue.errors import InputError
from jieyue.hf.prefix import as_prefix_lm
from jieyue.hf.tokenizers import learn_vocabulary, make_tokenizer
from jieyue.planning.prediction import TrainingStep, predict
from jieyue.report import Report
from jieyue.tasks import RunConfig
from jieyue.tasks.table import task
from jieyue.tasks.title.settings import TitleSettings
from jieyue.tasks.title.task import TASK, score_titles
from jieyue.tasks.title.writing import collate_titles, write_titles
from jieyue.training.remedies.remedy import apply
from jieyue.training.remedies.texts import REMEDIES, parse_remedy

PAIRS = [
    Pair("本文研究了水稻产量与气候变化的关系。", "水稻产量与气候"),
    Pair("提出一种基于粒子群的聚类算法。", "粒子群聚类"),
    Pair("We study how birds sing in winter.", "Birds in winter"),
    Pair("A new engine for small boats was built.", "An engine for boats"),
]
TOKENIZER = make_tokenizer(learn_vocabulary([text for pair in PAIRS for text in (pair.source, pair.title)]))
SIZES = {"vocab_size": len(TOKENIZER), "pad_token_id": TOKENIZER.pad_token_id, "eos_token_id": TOKENIZER.sep_token_id}
KINDS = ("prefix", "causal", "encoder-decoder")


def model_of(kind):
    torch.manual_seed(0)
    if kind == "encoder-decoder":
        config = transformers.BartConfig(
            **SIZES, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, decoder_start_token_id=TOKENIZER.sep_token_id,
            bos_token_id=TOKENIZER.cls_token_id, forced_eos_token_id=None, dropout=0.0,
        )  # fmt: skip
        return transformers.BartForConditionalGeneration(config)
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    if kind == "causal":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **common))
    config = transformers.BertConfig(
        **{name: value for name, value in SIZES.items() if name != "eos_token_id"}, **common, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, max_position_embeddings=128,
    )  # fmt: skip
    return as_prefix_lm(transformers.BertForMaskedLM(config), TOKENIZER)


def train(model, settings, remedies=(), steps=150):
    rows, _ = TASK.encode(PAIRS, TOKENIZER, settings)
    batch = collate_titles(rows, TOKENIZER, settings)
    run = apply(remedies, TASK.objective(settings))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    model.train()
    for _ in range(steps):
        loss = run(model, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_its_titles_and_writes_them(kind):
    settings = TitleSettings(kind=kind, source_tokens=24, title_tokens=12)
    model = model_of(kind)
    assert train(model, settings) < 0.1
    written = TASK.answer(model, TOKENIZER, PAIRS, settings, batch_size=3)
    assert [one.text for one in written] == [pair.title.lower() for pair in PAIRS]
    assert all(one.finished for one in written)
    scores = score_titles(written, PAIRS)
    assert scores["exact_match"] == scores["rouge_l_characters"] == scores["rouge_2_words"] == 1
    greedy = write_titles(
        model, TOKENIZER, [pair.source for pair in PAIRS], TitleSettings(kind=kind, source_tokens=24, beams=1)
    )
    assert [one.text for one in greedy] == [pair.title.lower() for pair in PAIRS]


@pytest.mark.parametrize("kind", KINDS)
def test_the_objective_is_minus_log_probability_of_what_is_searched(kind):
    """What training sums and what search reports are the same number."""
    settings = TitleSettings(kind=kind, source_tokens=24, title_tokens=12, beams=4)
    model = model_of(kind).double().eval()
    train(model, settings, steps=40)
    model.eval()
    (found,) = TASK.answer(model, TOKENIZER, PAIRS[:1], settings)
    rows, _ = TASK.encode([Pair(PAIRS[0].source, found.text)], TOKENIZER, settings)
    tally = TASK.objective(settings)(model, collate_titles(rows, TOKENIZER, settings))
    if found.finished:
        assert float(tally.total.detach()) == pytest.approx(-found.log_probability, abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REMEDIES)
def test_every_remedy_trains_every_kind(name, kind):
    settings = TitleSettings(kind=kind, source_tokens=24, title_tokens=12)
    model = model_of(kind)
    if kind != "prefix":
        model.set_attn_implementation("eager")
    before = train(model, settings, steps=1)
    assert train(model, settings, [parse_remedy(name)], steps=25) < before


@pytest.mark.parametrize("name", REMEDIES)
def test_the_planner_can_trace_every_remedy(name):
    """Hooks of its memory tracker bear gradients taken inside the objective; a remedy that works twice shows in the peak."""
    settings = TitleSettings(source_tokens=24, title_tokens=12)

    def peak(remedies):
        step = TrainingStep(
            build_model=lambda: model_of("prefix"),
            objective=apply(remedies, TASK.objective(settings)),
            example_batch=lambda rows, positions: TASK.example_batch(settings, rows, positions),
            make_optimizer=lambda model: torch.optim.AdamW(model.parameters()),
            length=37,
        )
        return predict(step, effective_batch=4, micro_batch=4).peak_bytes

    assert peak([parse_remedy(name)]) >= peak([])


def test_rows():
    settings = TitleSettings(source_tokens=10, title_tokens=6)
    rows, counts = TASK.encode(PAIRS, TOKENIZER, settings)
    assert counts["rows"] == 4 and counts["sources_truncated"] == 4 and counts["titles_over_long"] == 1
    for row in rows:
        ids, labels, segments = row["input_ids"].tolist(), row["labels"].tolist(), row["token_type_ids"].tolist()
        start = segments.index(1)
        assert ids[0] == TOKENIZER.cls_token_id and ids[start - 1] == TOKENIZER.sep_token_id and start <= 11
        assert labels == [-100] * start + ids[start:] and len(ids) - start <= 6
    assert rows[0]["input_ids"][-1] != TOKENIZER.sep_token_id, "a title that was cut has no end to learn"
    assert rows[1]["input_ids"][-1] == TOKENIZER.sep_token_id
    skipped, counts = TASK.encode(PAIRS, TOKENIZER, TitleSettings(source_tokens=10, title_tokens=6, over_long="skip"))
    assert len(skipped) == 3 and counts["titles_left_out"] == 1
    with pytest.raises(InputError, match="over_long"):
        TASK.encode(PAIRS, TOKENIZER, TitleSettings(source_tokens=10, title_tokens=6, over_long="refuse"))
    both = collate_titles(
        [{"input_ids": rows[1]["input_ids"], "labels": rows[1]["labels"]}],
        TOKENIZER,
        TitleSettings(kind="encoder-decoder"),
    )
    assert both["labels"].shape[1] == both["input_ids"].shape[1] + 1


def written(folder, name, text):
    path = folder / name
    (path.write_bytes if isinstance(text, bytes) else path.write_text)(text)
    return path


def test_files_of_every_shape(tmp_path):
    one = [Pair('文章 内容，"引号"', "标题")]
    records = [{"title": "标题", "abstract": '文章 内容，"引号"', "id": 3}]
    lcsts = [{"summary": "标题", "short_text": '文章 内容，"引号"'}]
    shapes = {
        "csl.tsv": '标题\t文章 内容，"引号"\n',
        "csl.tsv.xz": lzma.compress('标题\t文章 内容，"引号"\n'.encode()),
        "header.tsv": 'abstract\tid\ttitle\n文章 内容，"引号"\t3\t标题\n',
        "quoted.csv": 'title,content\n标题,"文章 内容，""引号"""\n',
        "crlf.tsv": '标题\t文章 内容，"引号"\r\n',
        "lines.jsonl": "\n".join(json.dumps(record, ensure_ascii=False) for record in records * 2),
        "list.json": json.dumps(lcsts),
    }
    for name, text in shapes.items():
        pairs, findings = read_titles(written(tmp_path, name, text))
        assert pairs == one * len(pairs), name
        assert findings.counts["pairs"] == len(pairs)
    named, _ = read_titles(tmp_path / "lines.jsonl", source_column="title", title_column="abstract")
    assert named[0] == Pair(one[0].title, one[0].source)
    numbered, _ = read_titles(tmp_path / "csl.tsv", source_column="1", title_column="2")
    assert numbered[0] == Pair(one[0].title, one[0].source)
    assert read_titles(tmp_path / "lines.jsonl")[1].counts["sources_repeated"] == 1


def test_bad_records_are_refused_or_counted(tmp_path):
    path = written(
        tmp_path, "bad.tsv", "标题一\t第一段内容。\n\t没有标题\n只有一格\n没有内容\t \n标题二\t第二段内容。\n"
    )
    with pytest.raises(InputError, match=r"line 2: found an empty title.*--skip-bad"):
        read_titles(path)
    pairs, findings = read_titles(path, skip_bad=True)
    assert len(pairs) == 2 and findings.counts["records_skipped"] == 3 and len(findings.skipped) == 3
    for text, match in (
        ("", "empty file"),
        ("只有一列\n", "columns parted"),
        ("a\tb\tc\n1\t2\t3\n", "--source-column"),
    ):
        with pytest.raises(InputError, match=match):
            read_titles(written(tmp_path, "other.tsv", text))
    with pytest.raises(InputError, match="'abstract' among them"):
        read_titles(written(tmp_path, "x.jsonl", '{"title": "a"}\n{"title": "b"}\n'), source_column="abstract")
    with pytest.raises(InputError, match="a title that is int"):
        read_titles(written(tmp_path, "y.jsonl", '{"title": 1, "text": "t"}\n'))


def test_what_ships_has_titles_that_are_not_shared():
    sources = TASK.sources(RunConfig(limit=400), TitleSettings(), 0)
    assert len(sources.train) > 300 and len(sources.set_aside) >= 5 and len(sources.held_out) == 400
    assert sources.shared["sources"] == 0
    assert not {pair.source for pair in sources.train} & {pair.source for pair in sources.set_aside}
    assert shared_pairs(PAIRS, PAIRS[:2]) == {"sources": 2, "titles": 2}
    assert task("title").name == "title"


def test_settings():
    assert TitleSettings().fitted(200).source_tokens == 224 - (257 - 200)
    assert TitleSettings(kind="causal").head("prefix") == "causal-lm"
    for values in ({"kind": "writer"}, {"over_long": "x"}, {"beams": 0}, {"title_tokens": 1}):
        with pytest.raises(InputError, match="expected"):
            TitleSettings(**values)
    with pytest.raises(InputError, match="positions"):
        TitleSettings().fitted(50)


def test_remedies_by_text():
    assert str(parse_remedy("replace_tokens(0.3, pool='sequence')")) == "replace_tokens(0.3, 0.5, 'sequence')"
    assert str(parse_remedy("sample_scheduled({0: 0.0, 100: 0.5}, 'sample')")).startswith("sample_scheduled({0: 0.0")
    for text in (
        "fgm(",
        "fgm(os)",
        "__import__('os')",
        "fgm(0.5).x",
        "mixup(0.1)",
        "fgm(1, 2, 3)",
        "fgm(1); 2",
        "fgm(**{'a': 1})",
    ):
        with pytest.raises(InputError, match="remedy"):
            parse_remedy(text)


def test_from_the_command_line(tmp_path):
    """Trains a preset with remedies on a file, judges it, and writes a title; the folder tells all that is needed."""
    data = written(
        tmp_path, "titles.tsv", "".join(f"{pair.title} {n}\t{n}：{pair.source}\n" for n in range(12) for pair in PAIRS)
    )
    out = tmp_path / "model"
    small = ["--source-tokens", 32, "--title-tokens", 16, "--effective-batch", 8, "--budget", "2GiB"]
    remedies = ["--remedy", "replace_tokens(0.3)", "--remedy", "fgm(0.5)"]
    done = jieyue("train", "title", "--data", data, "--steps", 4, "--out", out, *small, *remedies, savings=False)
    assert done.returncode == 0, done.stderr
    assert "ROUGE-L" in done.stdout and "jieyue title" in done.stdout
    report = Report.load(out)
    (costs,) = [section for section in report.sections if section.title == "What each remedy costs"]
    names = ["the task's objective", "and replace_tokens(0.3, 0.5, 'target')", "and fgm(0.5)"]
    assert [row[0] for row in costs.items[0].rows] == names
    done = jieyue("title", out, "--text", "鸟在冬天怎样歌唱", "--text", "另一篇", "--json")
    assert [set(json.loads(line)) >= {"title", "finished"} for line in done.stdout.splitlines()] == [True, True]
    assert jieyue("evaluate", out, data).returncode == 0
    assert "sources cut to source_tokens" not in jieyue("doctor", "title", data).stdout
    done = jieyue("plan", "title", "--data", data, "--remedy", "penalize_gradient", *small)
    assert done.returncode == 0 and "micro-batch" in done.stdout, done.stderr
    assert jieyue("title", out, "--text", " ").returncode == 2
