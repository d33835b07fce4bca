"""Dialogues from files to tokens: every layout, what is broken, one format, whole turns dropped, packed rows, the corpus."""

import difflib
import gzip
import json
import lzma
from itertools import pairwise

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jieyue.data import streams, textstream
from jieyue.data.batch import IGNORED, collate
from jieyue.data.corpora.everyday import compose_talks, heldout_openings, heldout_talks, read_scenes
from jieyue.data.dialogues import Format, contamination, read_dialogues
from jieyue.data.findings import Findings
from jieyue.data.history import ENDED, TURNS, Message, alternate, encode_talks, fit_history, template_for
from jieyue.data.mapped import ANY_TURN, LAST_TURN, REPLY, open_tokens, write_tokens
from jieyue.data.packing import DialogueRows, next_labels, pack
from jieyue.data.speakers import parse_roles
from jieyue.errors import InputError
from jieyue.hf.causal_presets import build_causal
from jieyue.hf.lossless_pieces import learn_lossless_vocabulary, make_lossless_tokenizer
from jieyue.tasks import RunConfig
from jieyue.tasks.chat.settings import ChatSettings
from jieyue.tasks.chat.task import TASK

TALK = [["你 好", "你 好 呀", "吃 了 吗"], ["Hi Tom", "Hello"]]
ROLED = {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"text": "Hi"}]}]}
CHATML = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def read(path, **options):
    findings = Findings()
    return list(read_dialogues(path, findings, **options)), findings


def texts(dialogues):
    return [[one.text for one in dialogue] for dialogue in dialogues]


@pytest.fixture(scope="module")
def tokenizer():
    words = ["你好呀，吃了吗？", "Hi Tom! Don't go to the 3rd market, hello there <s>user assistant system</s>\n"]
    words += [one.text for dialogue in compose_talks(0, 60) for one in dialogue]
    return make_lossless_tokenizer(learn_lossless_vocabulary(words, 300))


@pytest.mark.parametrize("packed", [bytes, gzip.compress, lzma.compress])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_layouts(tmp_path, packed, encoding):
    lines = "\r\n".join(json.dumps(talk, ensure_ascii=False) for talk in TALK)
    split = json.dumps({"train": TALK, "valid": TALK[:1]}, ensure_ascii=False, indent=1)
    rows = json.dumps([{"dialog": TALK[0]}, {"turns": [["Human", "Hi Tom"], ["bot", "Hello"]]}], ensure_ascii=False)
    for number, text in enumerate((lines, json.dumps(TALK, ensure_ascii=False), split, rows)):
        path = tmp_path / f"{number}.json"
        path.write_bytes(packed(text.encode(encoding)))
        found, findings = read(path, part="train" if number == 2 else None)
        assert texts(found) == [["你好", "你好呀", "吃了吗"], ["Hi Tom", "Hello"]]
        assert [one.role for one in found[0]] == ["user", "assistant", "user"]
        assert (findings.counts["dialogues"], findings.counts["turns"]) == (2, 5)


def test_parts_are_told_apart_by_name(tmp_path):
    """Wherever a file has them: what is held out for judging is not learned, and the other way round."""
    path, plain = tmp_path / "parts.json", tmp_path / "plain.jsonl"
    valid, train = [["v", "w"]], [[f"q{n}", f"a{n}"] for n in range(120)]
    path.write_text(json.dumps({"valid": valid, "version": {"a": [1]}, "train": train, "test": [["t", "u"]]}))
    plain.write_text('["a", "b"]')
    assert [streams.part_of(path, names) for names in (["train"], ["test", "valid"], ["dev"])] == [
        "train",
        "valid",
        None,
    ]
    assert streams.part_of(plain, ["train"]) is None
    sources = TASK.sources(RunConfig(data=[path]), ChatSettings(), 0)
    assert texts([*sources.train, *sources.held_out]) != texts(sources.train)
    assert sorted(texts([*sources.train, *sources.held_out])) == sorted(train)
    sources = TASK.sources(RunConfig(data=[path], held_out=[path]), ChatSettings(), 0)
    assert (texts(sources.train), texts(sources.held_out)) == (train, valid)
    sources = TASK.sources(RunConfig(data=[path, plain], held_out=[plain]), ChatSettings(), 0)
    assert (texts(sources.train), texts(sources.held_out)) == ([*train, ["a", "b"]], [["a", "b"]])


def test_roles_are_kept_and_speakers_become_roles(tmp_path):
    path = tmp_path / "roles.jsonl"
    pairs = {"turns": [["client", "Hi"], ["counselor", "Hello"], ["client", "Well"], ["client", "Bye"]]}
    path.write_text("\n".join(map(json.dumps, [ROLED, pairs])), encoding="utf-8")
    with pytest.raises(InputError, match=r"'client', 'counselor'.*--roles user=client,assistant=counselor"):
        read(path)
    (first, second), findings = read(path, known=Format(roles=parse_roles("user=client,assistant=counselor")))
    assert first == (Message("system", "Be kind."), Message("user", "Hi"))
    assert [one.role for one in second] == ["user", "assistant", "user", "user"]
    assert findings.counts["turns_same_speaker"] == 1


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('["a", 3]', "a number"),
        ('["a", ""]', "empty text in turn 2"),
        ("[]", "a list that is empty"),
        ('{"text": "a"}', "'text'"),
        ('["a", ', "column"),
        ('{"messages": [{"role": 1, "content": "a"}]}', "role"),
        ("3", "a number"),
    ],
)
def test_a_broken_record_stops_or_is_listed(tmp_path, line, found):
    path = tmp_path / "talks.jsonl"
    path.write_text('["a", "b"]\n' + line + '\n["c", "d"]', encoding="utf-8")
    with pytest.raises(InputError, match=r"record 2 \(line 2\)"):
        read(path)
    kept, findings = read(path, skip_bad=True)
    assert len(kept) == 2 and findings.counts["records_skipped"] == 1
    assert found in findings.skipped[0]


def test_bytes_that_are_not_utf8_break_one_record(tmp_path):
    path = tmp_path / "talks.jsonl"
    path.write_bytes('["你好，早上好", "b"]\n'.encode() + b'["a\xff", "b"]\n["c", "d"]\n')
    kept, findings = read(path, skip_bad=True)
    assert len(kept) == 2 and "not UTF-8" in findings.skipped[0]


@pytest.mark.parametrize("text", ["", "[[1,", '{"train": [["a"', "[]", '{"valid": [["a", "b"]]}'])
def test_files_that_are_refused(tmp_path, text):
    path = tmp_path / "talks.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"talks\.json"):
        read(path, part="train")
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "absent.json")


def test_a_file_larger_than_a_block_is_read_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr(textstream, "BLOCK", 61)
    talks = [[f"第{n}句“引号”\\n", "b" * (n % 40 + 1)] for n in range(200)]
    for name, text in (("list", json.dumps(talks, ensure_ascii=False)), ("lines", "\n".join(map(json.dumps, talks)))):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert texts(read(tmp_path / name)[0]) == talks
    longest = 0
    with textstream.TextStream(tmp_path / "list") as reader:
        for _ in streams.records(reader):
            longest = max(longest, len(reader.buffer))
    assert longest < 400  # what was consumed is forgotten


def test_contamination():
    training = [alternate(["a", "b", "c", "d"]), alternate(["Ｘ y", "z"])]
    held = [
        alternate(["A", "b", "c", "d"]),
        alternate(["xy", "z", "q"]),
        alternate(["n", "b", "c"]),
        alternate(["n", "o"]),
    ]
    assert contamination(training, held) == {"dialogues": 1, "openings": 2, "replies": 3}
    assert contamination([], held) == {"dialogues": 0, "openings": 0, "replies": 0}


def conversation(tokenizer, messages, **options):
    listed = [{"role": one.role, "content": one.text} for one in messages]
    return tokenizer.apply_chat_template(listed, chat_template=template_for(tokenizer), **options)["input_ids"]


def test_the_format_is_the_articles_and_the_templates(tokenizer):
    talk = alternate(["你好 ", " 你好呀", "吃了吗？"])
    (made,) = encode_talks(tokenizer, [talk])
    assert tokenizer.decode(made.ids) == "[CLS]你好[SEP]你好呀[SEP]吃了吗？[SEP]"
    assert made.ids.tolist() == conversation(tokenizer, talk)
    assert [tokenizer.decode(made.ids[a:b]) for a, b in made.turns] == [
        "你好[SEP]",
        "你好呀[SEP]",
        "吃了吗？[SEP]",
    ]


def test_nobody_ends_a_turn_from_inside_one(tokenizer):
    talk = alternate(["a [SEP] b [CLS]", "c[PAD]"])
    (made,) = encode_talks(tokenizer, [talk])
    special = [tokenizer.decode([one]) for one in made.ids if one in tokenizer.all_special_ids]
    assert special == ["[CLS]", "[SEP]", "[SEP]"]


def test_templates_of_others(tokenizer, monkeypatch):
    talk = (Message("system", "Be kind."), *alternate(["Hi", "Hello", "Bye"]))
    monkeypatch.setattr(tokenizer, "chat_template", CHATML)
    (made,) = encode_talks(tokenizer, [talk])
    assert made.ids.tolist() == conversation(tokenizer, talk)
    said = [tokenizer.decode(made.ids[a:b]) for a, b in made.turns]
    assert said[2] == "Hello</s>\n"  # the reply alone, not its heading
    fitted = fit_history(tokenizer, talk, len(made.ids) - 3)
    assert fitted.ids.tolist() == conversation(tokenizer, fitted.messages, add_generation_prompt=True)
    assert fitted.messages[0].role == "system" and fitted.num_dropped >= 1
    monkeypatch.setattr(tokenizer, "chat_template", "{{ messages[-1].content }}")
    with pytest.raises(InputError, match="rewrites"):
        encode_talks(tokenizer, [talk])
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}" + ENDED
    monkeypatch.setattr(tokenizer, "chat_template", strict)
    kept = fit_history(tokenizer, alternate(["Hi Tom", "Hello", "Bye", "Hello", "Bye"]), 8).messages
    assert kept[0].role == "user" and 1 <= len(kept) < 5


def test_a_tokenizer_without_template_gets_one_that_fits():
    class Bare:
        chat_template = cls_token = sep_token = None
        eos_token = "</s>"

    assert template_for(Bare) == ENDED
    Bare.cls_token = Bare.sep_token = "x"
    assert template_for(Bare) == TURNS
    Bare.cls_token = Bare.eos_token = None
    with pytest.raises(InputError, match="chat template"):
        template_for(Bare)


@settings(max_examples=60)
@given(
    turns=st.lists(st.text("你好吃a b", min_size=1, max_size=9).filter(str.strip), min_size=1, max_size=9),
    most=st.integers(3, 30),
)
def test_whole_oldest_turns_are_dropped_and_no_more_than_needed(tokenizer, turns, most):
    talk = alternate(turns)
    (last,) = encode_talks(tokenizer, [talk[-1:]])
    if len(last.ids) > most:
        with pytest.raises(InputError, match="newest turn"):
            fit_history(tokenizer, talk, most)
        return
    fitted = fit_history(tokenizer, talk, most)
    assert fitted.messages == talk[fitted.num_dropped :]
    assert len(fitted.ids) <= most
    assert fitted.ids.tolist() == conversation(tokenizer, fitted.messages)
    if fitted.num_dropped:  # one turn more would have been too much
        (more,) = encode_talks(tokenizer, [talk[fitted.num_dropped - 1 :]])
        assert len(more.ids) > most


def marked(talk, messages):
    marks = numpy.zeros(len(talk.ids), numpy.uint8)
    for (first, stop), one in zip(talk.turns, messages, strict=True):
        marks[first:stop] |= ANY_TURN | (REPLY if one.role == "assistant" else 0)
    marks[talk.turns[-1][0] :] |= LAST_TURN
    return talk.ids, marks


@pytest.fixture(scope="module")
def mapped(tokenizer, tmp_path_factory):
    talks = compose_talks(0, 60)
    rows = [marked(talk, messages) for talk, messages in zip(encode_talks(tokenizer, talks), talks, strict=True)]
    folder = tmp_path_factory.mktemp("tokens")
    return rows, write_tokens(folder, iter(rows), {"dialogues": 60}, block=100)


def test_tokens_on_disk_are_the_tokens(mapped):
    rows, tokens = mapped
    again = open_tokens(tokens.folder)
    assert len(again) == 60 and again.counts == {"dialogues": 60}
    for (ids, marks), number in zip(rows, range(60), strict=True):
        assert (again[number][0] == ids).all() and (again[number][1] == marks).all()
    (tokens.folder / "counts.json").rename(tokens.folder / "hidden")
    assert open_tokens(tokens.folder) is None  # writing was interrupted
    (tokens.folder / "hidden").rename(tokens.folder / "counts.json")


def test_labels(mapped):
    ids, marks = mapped[0][0]
    for loss_on, bit in (("all", ANY_TURN), ("replies", REPLY), ("last", LAST_TURN)):
        labels = next_labels(ids, marks, loss_on)
        expected = [int(ids[t + 1]) if marks[t + 1] & bit else IGNORED for t in range(len(ids) - 1)]
        assert labels.tolist() == [*expected, IGNORED]
    with pytest.raises(InputError, match="loss_on"):
        DialogueRows(mapped[1], "some")


@given(lengths=st.lists(st.integers(1, 30), max_size=200), room=st.integers(1, 64))
def test_packing_loses_nothing_and_overfills_nothing(lengths, room):
    order, starts = pack(lengths, room)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    for first, stop in pairwise(starts):
        row = [lengths[number] for number in order[first:stop]]
        assert row and (sum(row) <= room or len(row) == 1)


def test_packed_dialogues_do_not_see_one_another(mapped, tokenizer):
    """The loss of packed rows is that of the dialogues alone, float64; without restarting positions it is not."""
    tokens = mapped[1]
    model = build_causal("tiny", tokenizer, hidden_size=32, num_hidden_layers=2, intermediate_size=64).double().eval()

    def total(rows, positions):
        batch = collate([rows[number] for number in range(len(rows))], tokenizer.pad_token_id)
        given = {"position_ids": batch["position_ids"]} if positions else {}
        logits = model(input_ids=batch["input_ids"], use_cache=False, **given).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")

    with torch.no_grad():
        alone = total(DialogueRows(tokens), False)
        packed = DialogueRows(tokens, row_tokens=128)
        assert len(packed) < 0.7 * len(tokens)
        assert packed.lengths.sum() == tokens.lengths.sum()
        torch.testing.assert_close(total(packed, True), alone, rtol=1e-12, atol=0)
        broken = total(packed, False)
    assert abs(broken - alone) > 1e-6 * alone


def test_mapped_tokens_are_not_held_in_memory(tmp_path):
    """A hundred times as many dialogues, the same private memory."""

    def private():
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

    def peak(count):
        one = numpy.arange(200, dtype=numpy.int32), numpy.ones(200, numpy.uint8)
        tokens = write_tokens(tmp_path / str(count), (one for _ in range(count)), {}, block=2**14)
        before = private()
        rows = DialogueRows(tokens)
        for number in range(0, count, 50):
            assert len(rows[number]["input_ids"]) == 200
        return private() - before

    peak(100)
    assert peak(100_000) < 8 * 1024  # KiB; the tokens are 100 MB


@pytest.mark.parametrize("language", ["zh", "en"])
def test_scenes(language):
    scenes = read_scenes(language)
    assert len(scenes) >= 42
    for scene in scenes:
        assert len(scene.openings) >= 5 and len(scene.replies) >= 2 and scene.later, scene.name
        assert all(scene.key.casefold() in reply.casefold() for reply in scene.replies), scene.name
        if scene.held_out:
            opening, reply, *_ = scene.held_out
            assert scene.key.casefold() not in opening.casefold()  # an echo must not count
            assert scene.key.casefold() in reply.casefold()
    assert len({reply for scene in scenes for reply in scene.replies}) == sum(len(scene.replies) for scene in scenes)


def test_corpus_and_its_held_out_openings():
    talks = compose_talks()
    assert len(talks) >= 500 and len(set(talks)) == len(talks)
    assert all(len(talk) >= 4 and len(talk) % 2 == 0 for talk in talks)
    chinese = sum(any("一" <= char <= "鿿" for char in talk[0].text) for talk in talks)
    assert 0.4 < chinese / len(talks) < 0.6
    said = {one.text.casefold().strip("。.!?！？") for talk in talks for one in talk}
    held = heldout_openings()
    assert len(held) == 60 and {one.language for one in held} == {"zh", "en"}
    turns = [one.text for talk in heldout_talks() for one in talk]
    assert len(set(turns)) == len(turns) == 4 * 60
    assert not [text for text in turns if text.casefold().strip("。.!?！？") in said]
    scenes = {scene.name: scene for language in ("zh", "en") for scene in read_scenes(language)}
    for one in held:
        scene = scenes[one.scene]
        for new, learned in zip(scene.held_out, (scene.openings, scene.replies), strict=False):
            alike = difflib.SequenceMatcher(None, "", new.casefold())
            for text in learned:
                alike.set_seq1(text.casefold())
                assert alike.ratio() <= 0.9, (new, text)
    assert [talk[0].text for talk in heldout_talks()] == [one.text for one in held]
    assert compose_talks(3, 50) == compose_talks(3, 50) != compose_talks(4, 50)
    with pytest.raises(InputError, match="num_dialogues"):
        compose_talks(0, 0)
    assert contamination(talks, heldout_talks()) == {"dialogues": 0, "openings": 0, "replies": 0}


def test_text_comes_back_letter_for_letter(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for talk in compose_talks(0, 60):
        for one in talk:
            ids = again(one.text, add_special_tokens=False)["input_ids"]
            assert again.decode(ids) == one.text
    ids = again("Don't  go, Tom! 你好 3rd #1", add_special_tokens=False)["input_ids"]
    assert again.decode(ids) == "Don't  go, Tom! 你好 3rd #1"
