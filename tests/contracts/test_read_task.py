"""Contract of the reader: rows as the article has them, targets of the passage's own tokens, answers letter for letter."""

import json
from dataclasses import asdict, replace

import numpy
import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from jieyue.data.batch import collate
from jieyue.data.findings import MEANING
from jieyue.data.qa_files import Passage, Question
from jieyue.data.windows import specials, tokenize
from jieyue.errors import InputError
from jieyue.metrics.extraction import TrainingAnswers
from jieyue.tasks import Task
from jieyue.tasks.read.masked import objective
from jieyue.tasks.read.reader import Answer
from jieyue.tasks.read.settings import ReadSettings
from jieyue.tasks.read.task import TASK, against_baselines, calibrate
from jieyue.tasks.read.task import score_readings as score
from jieyue.tasks.table import TASKS, task

CORPUS = [
    "The ferry Heron leaves from Pier Nine at 7:30 every morning.",
    "渡船每天早上七点从北岸出发，票价两元。",
    "Mrs. O'Neil   sells tickets (two crowns) at the café.",
    "图书馆在2019年搬到了新楼。",
]


def wordpiece():
    """As BERT's: lower case, CJK characters alone, pieces of words."""
    chars = sorted(
        {char for text in CORPUS for char in text.lower() if not char.isspace()} | set("abcdefghijklmnopqrstuvwxyz")
    )
    words = ["the", "fer", "##ry", "morning", "ticket", "20", "##19"]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*names, *chars, *words, *(f"##{char}" for char in chars if char.isalnum() and char.isascii())]
    core = Tokenizer(models.WordPiece({piece: at for at, piece in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        pad_token="[PAD]",
    )


def bytelevel():
    """As RoBERTa's: bytes, spaces part of the word, <s> and </s>."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    core.decoder = decoders.ByteLevel()
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=268, special_tokens=names, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        pad_token="<pad>",
    )


def metaspace():
    """As ALBERT's: the space is a mark before the word, characters beyond the vocabulary are unknown."""
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    names = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=names, unk_token="<unk>", max_piece_length=3, show_progress=False
    )
    core.train_from_iterator([text for text in CORPUS for _ in range(2)] + list("".join(CORPUS)), trainer)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        pad_token="<pad>",
    )


TOKENIZERS = {"wordpiece": wordpiece, "bytelevel": bytelevel, "metaspace": metaspace}
SETTINGS = ReadSettings(answer_slots=14, question_tokens=24, window_tokens=40, overlap_tokens=16)


def ask(text, passage, *golds, **extras):
    spans = tuple((passage.index(gold), passage.index(gold) + len(gold)) for gold in golds)
    return Question(extras.pop("id", "q"), text, (Passage(passage, spans),), golds, **extras)


QUESTIONS = [
    ask("When?", CORPUS[0], "7:30", id="0"),
    ask("几点？", CORPUS[1], "七点", id="1"),
    ask("Who sells tickets?", CORPUS[2], "Mrs. O'Neil", id="2"),
    ask("哪年？", CORPUS[3], "2019年", id="3"),
    ask("Who is the captain?", CORPUS[0], id="4"),
]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_rows_are_the_articles(name):
    tokenizer = TOKENIZERS[name]()
    special = specials(tokenizer)
    rows, counts = TASK.encode(QUESTIONS, tokenizer, SETTINGS)
    assert counts["rows_answered"] >= 4 and counts["rows_abstaining"] >= 1 and counts["rows"] == len(rows)
    for row in rows:
        question = QUESTIONS[row["question"]]
        asked = tokenizer(question.text, add_special_tokens=False)["input_ids"]
        head = [special.cls, *[special.mask] * 14, special.sep, *asked, special.sep]
        assert row["input_ids"][: len(head)].tolist() == head
        assert row["input_ids"][-1] == special.sep
        window = row["input_ids"][len(head) : -1].tolist()
        target = row["labels"][row["labels"] != -100].tolist()
        assert target[-1] == special.sep and special.sep not in target[:-1]
        joined = ",".join(map(str, window))
        assert ",".join(map(str, target[:-1])) in joined  # the passage's own tokens
        assert len(row["labels"]) == 14 and len(row["input_ids"]) <= SETTINGS.longest_row


def test_the_article_default_is_354_tokens():
    assert ReadSettings().longest_row == 354


class Scripted(torch.nn.Module):
    """A model that spells, for every row, what ``script(input ids)`` returns: [(token ids, logit)] by slot."""

    def __init__(self, script, vocabulary):
        super().__init__()
        self.script, self.vocabulary = script, vocabulary
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.batches = []

    def forward(self, input_ids, attention_mask):
        self.batches.append(tuple(input_ids.shape))
        logits = torch.zeros(*input_ids.shape, self.vocabulary)
        for b, ids in enumerate(input_ids):
            for slot, (token, height) in enumerate(self.script(ids[attention_mask[b].bool()].tolist())):
                logits[b, 1 + slot, token] = height
        return hf.modeling_outputs.MaskedLMOutput(logits=logits)


def knows_all(tokenizer, questions, settings, height=9.0):
    """A script that answers each row with its own target."""
    rows, _ = TASK.encode(questions, tokenizer, replace(settings, negatives_per_positive=100.0))
    told = {tuple(row["input_ids"].tolist()): row["labels"][row["labels"] != -100].tolist() for row in rows}
    return lambda ids: [(token, height) for token in told[tuple(ids)]]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_perfect_model_scores_perfectly(name):
    tokenizer = TOKENIZERS[name]()
    model = Scripted(knows_all(tokenizer, QUESTIONS, SETTINGS), len(tokenizer)).train()
    answers = TASK.answer(model, tokenizer, QUESTIONS, SETTINGS, batch_size=2)
    assert model.training and all(rows <= 2 for rows, _ in model.batches)
    for one, question in zip(answers, QUESTIONS, strict=True):
        assert one.id == question.id
        if not question.golds:
            assert one.text == "" and one.passage == -1 and one.vote == 0
            continue
        assert one.text == question.golds[0] == question.passages[one.passage].text[one.start : one.end]
        assert one.vote == pytest.approx(one.score**2 / (one.score + 1))
    facts = score(answers, QUESTIONS, training=TrainingAnswers.of([QUESTIONS[0].golds]))
    assert facts["exact_match"] == facts["f1"] == 1 and facts["unseen"]["questions"] == 3
    assert (
        against_baselines(
            answers, QUESTIONS, TrainingAnswers.of([one.golds for one in QUESTIONS if one.golds is not None])
        )["gain"]
        > 0.5
    )


def test_batches_do_not_change_answers():
    tokenizer = wordpiece()
    config = hf.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = hf.BertForMaskedLM(config).eval()
    alone = [TASK.answer(model, tokenizer, [question], SETTINGS)[0] for question in QUESTIONS]
    together = TASK.answer(model, tokenizer, QUESTIONS, SETTINGS, batch_size=64)
    for a, b in zip(alone, together, strict=True):
        assert (a.text, a.start, a.passage) == (b.text, b.start, b.passage)
        assert a.confidence == pytest.approx(b.confidence, rel=1e-4)


def test_one_window_is_no_windows():
    """A capacity that just holds the passage and one far larger give the same rows and the same answer."""
    tokenizer = wordpiece()
    tokens = len(tokenize(tokenizer, [CORPUS[1]])[0].ids)
    exact, large = (replace(SETTINGS, window_tokens=size, overlap_tokens=0) for size in (tokens + 1, 200))
    rows = [TASK.encode(QUESTIONS[1:2], tokenizer, settings)[0] for settings in (exact, large)]
    assert [row["input_ids"].tolist() for row in rows[0]] == [row["input_ids"].tolist() for row in rows[1]]
    narrow = replace(SETTINGS, window_tokens=tokens, overlap_tokens=0)
    assert len(TASK.encode(QUESTIONS[1:2], tokenizer, narrow)[0]) > 1  # the twin: one token less makes two windows


def test_windows_give_their_maximum_and_passages_vote():
    tokenizer = wordpiece()
    settings = ReadSettings(answer_slots=4, question_tokens=8, window_tokens=7, overlap_tokens=0)
    passages = ("北岸北岸北岸七点出发元元", "早上七点", "票价两元。", "票价两元，早上")
    question = Question("q", "？", tuple(Passage(text) for text in passages), None)
    ids = {char: tokenizer.convert_tokens_to_ids(char) for char in "北岸七点两元早上"}
    sep = specials(tokenizer).sep

    def script(row):
        window = row[row.index(sep, 6) + 1 :]
        if ids["两"] in window:
            return [(ids["两"], 8.0), (ids["元"], 8.0), (sep, 8.0)]
        if ids["七"] in window:
            height = 5.0 if ids["早"] in window else 7.0
            return [(ids["七"], height), (ids["点"], height), (sep, height)]
        return [(sep, 9.0)]

    model = Scripted(script, len(tokenizer))
    (found,) = TASK.answer(model, tokenizer, [question], settings)
    size = len(tokenizer)

    def sure(height):
        return float(numpy.exp(height) / (numpy.exp(height) + size - 1))

    two, seven = [sure(8.0)] * 2, [sure(7.0), sure(5.0)]
    votes = {"两元": two, "七点": seven}
    expected = {text: sum(s * s for s in own) / (sum(own) + 1) for text, own in votes.items()}
    assert found.text == "两元" and found.passage == 2 and (found.start, found.end) == (2, 4)
    assert found.vote == pytest.approx(expected["两元"], rel=1e-5)
    assert found.rivals == (("七点", pytest.approx(expected["七点"], rel=1e-5)),)
    silent = TASK.answer(Scripted(lambda row: [(sep, 9.0)], size), tokenizer, [question], settings)[0]
    assert silent.text == "" and silent.confidence > 0.9


def test_the_slice_is_the_original_text_not_the_tokens():
    """Case, double spaces and characters unknown to the vocabulary come back as they stand in the passage."""
    tokenizer = wordpiece()
    question = ask("Who?", "Here is  MRS.  Ω☃ O'Neil now", "MRS.  Ω☃ O'Neil")
    model = Scripted(knows_all(tokenizer, [question], SETTINGS), len(tokenizer))
    assert TASK.answer(model, tokenizer, [question], SETTINGS)[0].text == "MRS.  Ω☃ O'Neil"


def test_answers_off_token_borders_are_counted_and_covered():
    tokenizer = wordpiece()
    rows, counts = TASK.encode([ask("?", "ten tickets", "icket")], tokenizer, SETTINGS)
    assert counts["answers_off_token_borders"] == 1
    target = [token for token in rows[0]["labels"].tolist() if token != -100][:-1]
    assert tokenizer.convert_ids_to_tokens(target) == ["ticket"]
    assert TASK.encode(QUESTIONS, tokenizer, SETTINGS)[1]["answers_off_token_borders"] == 0
    assert TASK.encode(QUESTIONS, bytelevel(), SETTINGS)[1]["answers_off_token_borders"] == 0


def test_marks_in_the_text_stay_text():
    """A passage that spells [SEP] must not close the answer."""
    tokenizer = wordpiece()
    special = specials(tokenizer)
    rows, _ = TASK.encode([ask("[MASK]?", "the [SEP] a", "a")], tokenizer, SETTINGS)
    ids = rows[0]["input_ids"].tolist()
    assert ids.count(special.sep) == 3 and ids.count(special.mask) == SETTINGS.answer_slots
    assert (
        tokenizer("the [SEP]", add_special_tokens=False)["input_ids"][-1] == special.sep
    )  # elsewhere they are marks still


def test_everything_that_gives_no_row_is_counted():
    tokenizer = wordpiece()
    settings = ReadSettings(answer_slots=4, question_tokens=4, window_tokens=6, overlap_tokens=2)
    long = ask("?", "abcde 七点出发 票价", "七点出发")
    lost = Question("l", "?", (Passage("七点", (), unplaced=True),), ("八点",))
    unknown = Question("u", "?", (Passage("七点"),), None)
    truncated = ask("one two three four?", "七点", "七点")
    rows, counts = TASK.encode([long, lost, unknown, truncated], tokenizer, settings)
    assert set(counts) <= set(MEANING)
    assert [row["question"] for row in rows] == [3]
    assert {
        "answers_over_long": 1,
        "questions_not_trained": 2,
        "questions_without_golds": 1,
        "questions_truncated": 1,
        "rows": 1,
        "longest_answer_tokens": 4,
    }.items() <= counts.items()
    assert counts["windows_unclear"] == counts["windows"] - 1
    assert len(rows[0]["input_ids"]) == 2 + 4 + 4 + 3


@pytest.mark.parametrize("limit", [0.0, 1.0, 2.0, 100.0])
def test_abstaining_windows_are_limited(limit):
    tokenizer = wordpiece()
    text = "北岸出发" * 8 + "七点" + "北岸出发" * 8
    settings = ReadSettings(
        answer_slots=4, question_tokens=8, window_tokens=11, overlap_tokens=2, negatives_per_positive=limit
    )
    rows, counts = TASK.encode([ask("?", text, "七点"), ask("?", text.replace("七点", "点七"))], tokenizer, settings)
    answered = sum(row["labels"][1] != -100 for row in rows)
    first = [row for row in rows if row["question"] == 0]
    assert answered == counts["rows_answered"] >= 1
    abstaining = len(first) - answered
    assert abstaining == min(round(limit * answered), counts["windows"] // 2 - answered)
    assert len(rows) - len(first) == min(max(1, round(limit)), counts["windows"] // 2)
    assert counts["windows_left_out"] == counts["windows"] - len(rows)
    again, _ = TASK.encode([ask("?", text, "七点"), ask("?", text.replace("七点", "点七"))], tokenizer, settings)
    assert [row["input_ids"].tolist() for row in again] == [row["input_ids"].tolist() for row in rows]


def test_the_same_words_elsewhere_teach_nothing():
    tokenizer = wordpiece()
    passage = "七点出发北岸" + "票价两元" * 2 + "七点北岸"
    settings = ReadSettings(
        answer_slots=4, question_tokens=8, window_tokens=8, overlap_tokens=0, negatives_per_positive=9
    )
    rows, counts = TASK.encode([ask("?", passage, "七点")], tokenizer, settings)
    assert counts["windows_unclear"] == 1 and counts["windows"] == 3 and len(rows) == 2


def test_settings():
    settings = ReadSettings(answer_slots=8, temperature=1.5)
    assert ReadSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert settings.fitted(512) == settings
    smaller = ReadSettings().fitted(256)
    assert smaller.longest_row == 256 and smaller.overlap_tokens <= smaller.window_tokens // 2
    for arguments, complaint in (
        ({"answer_slots": 1}, "answer_slots=1"),
        ({"overlap_tokens": 256}, "overlap_tokens=256"),
        ({"temperature": 0.0}, "temperature=0.0"),
    ):
        with pytest.raises(InputError, match=complaint):
            ReadSettings(**arguments)
    with pytest.raises(InputError, match="128 positions"):
        ReadSettings().fitted(128)
    with pytest.raises(InputError, match="windw"):
        ReadSettings.from_dict({"windw": 3})


def test_unfit_tokenizers_are_refused():
    tokenizer = wordpiece()
    tokenizer.mask_token = None
    with pytest.raises(InputError, match="without mask_token"):
        TASK.encode(QUESTIONS, tokenizer, SETTINGS)

    class Slow:
        is_fast = False
        cls_token_id = sep_token_id = mask_token_id = pad_token_id = 1

    with pytest.raises(InputError, match="fast tokenizer"):
        TASK.encode(QUESTIONS, Slow(), SETTINGS)


def test_recipe_table(tmp_path):
    found = task("read")
    assert set(TASKS) >= {"read"} and isinstance(found, Task) and found.objective(SETTINGS) is objective
    file = tmp_path / "own.py"
    file.write_text("from jieyue.tasks.read.task import TASK\n", encoding="utf-8")
    assert task(str(file)) is found
    with pytest.raises(InputError, match="one of read"):
        task("reed")
    file.write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(InputError, match="no TASK"):
        task(str(file))


@pytest.mark.parametrize(("search", "cool"), [("greedy", 1.5), ("best", 1.25)])
def test_calibration_of_answers(search, cool):
    """Half of the answers wrong at high confidence: the temperature rises and the error falls."""
    tokenizer = wordpiece()
    good = [replace(question, id=str(at)) for at in range(8) for question in QUESTIONS[:4]]
    told = knows_all(tokenizer, QUESTIONS[:4], SETTINGS, height=12.0)
    answers = TASK.answer(Scripted(told, len(tokenizer)), tokenizer, good, replace(SETTINGS, search=search))
    wrong = [replace(question, golds=("another",)) if at // 4 % 2 else question for at, question in enumerate(good)]
    fitted = calibrate(answers, wrong)
    assert fitted.count == 32 and fitted.temperature > cool and fitted.error_after < fitted.error_before
    assert score(answers, wrong)["calibration_error"] == pytest.approx(fitted.error_before)
    with pytest.raises(InputError, match="no question whose answers are known"):
        calibrate(answers[:1], [replace(good[0], golds=None)])
    assert "reading" not in repr(answers[0]) and asdict(Answer("i", ""))["text"] == ""


def test_a_tiny_model_learns_to_read():
    """One law the pieces cannot show alone: training on the rows makes the decoder give the answers."""
    tokenizer = wordpiece()
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=len(tokenizer), hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=96, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = hf.BertForMaskedLM(config)
    rows, _ = TASK.encode(QUESTIONS, tokenizer, SETTINGS)
    batch = collate(rows, specials(tokenizer).pad)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(90):
        tally = objective(model, batch)
        optimizer.zero_grad()
        (tally.total / tally.weight).backward()
        optimizer.step()
    facts = score(TASK.answer(model, tokenizer, QUESTIONS, SETTINGS), QUESTIONS)
    assert facts["exact_match"] == 1.0


@pytest.mark.gpu
def test_the_gpu_answers_alike():
    tokenizer = wordpiece()
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = hf.BertForMaskedLM(config).eval()
    here = TASK.answer(model, tokenizer, QUESTIONS, SETTINGS)
    there = TASK.answer(model.cuda(), tokenizer, QUESTIONS, SETTINGS)
    assert [one.text for one in here] == [one.text for one in there]
    assert [one.confidence for one in here] == pytest.approx([one.confidence for one in there], rel=1e-3)
