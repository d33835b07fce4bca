"""Laws of the three readers: with a cache = without; written answers against a slow oracle; spans against brute force."""

import dataclasses

import numpy
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from reading_tokenizer import TOKENIZER

from jieyue.data.batch import collate
from jieyue.data.qa_files import Passage, Question
from jieyue.data.windows import specials, tokenize, windows
from jieyue.decoding.spans import best_span
from jieyue.hf.prefix import as_prefix_lm
from jieyue.hf.span import span_logits
from jieyue.hf.steps import rereading, steps
from jieyue.tasks.read import prefix as writing
from jieyue.tasks.read.settings import ReadSettings
from jieyue.tasks.read.span import answer as answer_by_span
from jieyue.tasks.read.task import READERS, TASK

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
DROPLESS = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 96}
SETTINGS = ReadSettings(reader="prefix", answer_slots=5, question_tokens=8, window_tokens=14, overlap_tokens=4)


def bert(kind=hf.BertForMaskedLM, seed=0):
    torch.manual_seed(seed)
    config = hf.BertConfig(vocab_size=len(TOKENIZER), initializer_range=0.6, **SMALL, **DROPLESS)
    return kind(config).double().eval()


def eurobert(seed=0):
    torch.manual_seed(seed)
    config = hf.EuroBertConfig(vocab_size=len(TOKENIZER), initializer_range=0.5, pad_token_id=0, **SMALL)
    return hf.EuroBertForMaskedLM(config).double().eval()


def questions(seed, count=6):
    """Questions about one to three passages of few letters, so that n-grams repeat and windows are several."""
    random = numpy.random.default_rng(seed)

    def text(low, high):
        return "".join(random.choice(list("abcdef"), random.integers(low, high)))

    return [
        Question(str(at), text(1, 5), tuple(Passage(text(1, 30)) for _ in range(random.integers(1, 4))), None)
        for at in range(count)
    ]


def slow_answer(model, question, own=SETTINGS, squares=True):
    """The article's reader, written out: sets of n-grams, one whole forward pass a token and window, Python loops."""
    special = specials(TOKENIZER)
    (asked,) = tokenize(TOKENIZER, [question.text])
    rows = []
    for number, passage in enumerate(question.passages):
        (tokens,) = tokenize(TOKENIZER, [passage.text])
        for first, stop in windows(len(tokens.ids), own.window_tokens - 1, own.overlap_tokens):
            ids = tokens.ids[first:stop].tolist()
            source = [special.cls, *ids, special.sep, *asked.ids[: own.question_tokens - 1].tolist(), special.sep]
            rows.append((number, ids, source))

    def probabilities(source, said):
        ids = torch.tensor([[*source, *said]])
        kinds = torch.tensor([[0] * len(source) + [1] * len(said)])
        with torch.no_grad():
            return model(ids, token_type_ids=kinds).logits[0, -1].softmax(-1).tolist()

    rows = [row for row in rows if int(numpy.argmax(probabilities(row[2], []))) != special.sep]
    said, votes = [], []
    while rows and len(said) < own.answer_slots:
        n = len(said)
        grams = {tuple(ids[at : at + n + 1]) for _, ids, _ in rows for at in range(len(ids) - n)}
        allowed = [special.sep, *sorted({gram[-1] for gram in grams if list(gram[:-1]) == said})]
        best = {}
        for number, _, source in rows:
            p = probabilities(source, said)
            kept = best.setdefault(number, dict.fromkeys(allowed, 0.0))
            for token in allowed:
                kept[token] = max(kept[token], p[token])
        vote = {}
        for token in allowed:
            own_p = [kept[token] for kept in best.values()]
            top = sum(p * p for p in own_p) if squares else sum(own_p)
            vote[token] = top / (sum(own_p) + 1)
        token = max(allowed, key=lambda one: vote[one])
        votes.append(vote[token])
        if token == special.sep:
            break
        said.append(token)
    return "".join(TOKENIZER.convert_ids_to_tokens(said)), float(numpy.mean(votes)) if said else 0.0


@pytest.mark.parametrize("make", [bert, eurobert])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_written_answers_equal_the_slow_oracle_with_and_without_a_cache(make, seed):
    model, asked = as_prefix_lm(make(seed=seed), TOKENIZER), questions(seed)
    cached = writing.answer(model, TOKENIZER, asked, SETTINGS, batch_size=4)
    plain = writing.answer(model, TOKENIZER, asked, SETTINGS, batch_size=64, make_step=rereading)
    for one, other, question in zip(cached, plain, asked, strict=True):
        text, vote = slow_answer(model, question)
        assert one.text == other.text == text
        assert one.vote == pytest.approx(vote, rel=1e-10) and other.vote == pytest.approx(vote, rel=1e-10)
        assert one.confidence == pytest.approx(other.confidence, rel=1e-5)
        if one.text:
            assert one.text == question.passages[one.passage].text[one.start : one.end]
    assert any(one.text for one in cached)


def test_the_oracle_tells_another_vote_apart():
    """The broken twin: without squares, the vote of several passages is another."""
    model = as_prefix_lm(bert(seed=1), TOKENIZER)
    asked = questions(1, 8)
    found = writing.answer(model, TOKENIZER, asked, SETTINGS)
    twins = [slow_answer(model, question, squares=False) for question in asked]
    assert any(one.text and abs(one.vote - vote) > 1e-6 for one, (_, vote) in zip(found, twins, strict=True))


def forgetful(model):
    """The broken twin of a cache: what was written before the last token is forgotten."""
    step = steps(model)

    def twin(tokens, state):
        if tokens.ndim == 1 and twin.has_written:
            assert state.crop(1)
        twin.has_written = tokens.ndim == 1
        return step(tokens, state)

    return twin


def test_a_forgetful_cache_is_caught():
    model, found = as_prefix_lm(bert(seed=0), TOKENIZER), False
    for seed in range(4):
        asked = questions(seed)
        right = writing.answer(model, TOKENIZER, asked, SETTINGS)
        wrong = writing.answer(model, TOKENIZER, asked, SETTINGS, make_step=forgetful)
        found |= any(a.vote != pytest.approx(b.vote, rel=1e-9) for a, b in zip(right, wrong, strict=True))
    assert found


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_what_is_written_stands_in_a_passage(seed):
    model = as_prefix_lm(bert(seed=seed % 5), TOKENIZER)
    for question, one in zip(
        questions(seed, 2), writing.answer(model, TOKENIZER, questions(seed, 2), SETTINGS), strict=True
    ):
        assert one.text == "" or one.text in question.passages[one.passage].text
        assert len(one.text) <= SETTINGS.answer_slots and 0 <= one.confidence <= 1 + 1e-6


def brute_span(tokens, logits, null, longest):
    whole = numpy.concatenate([null[:, None], logits], 1)
    p = numpy.exp(whole) / numpy.exp(whole).sum(1, keepdims=True)
    best = (p[0, 0] * p[1, 0], 0, 0)
    for n in range(1, longest + 1):
        for at in range(len(tokens) - n + 1):
            worth = p[0, 1 + at] * p[1, at + n]
            if worth > best[0] * (1 + 1e-12):
                best = (worth, at, n)
    every = p[0, 0] * p[1, 0] + sum(
        p[0, 1 + at] * p[1, at + n] for n in range(1, longest + 1) for at in range(len(tokens) - n + 1)
    )
    worth, at, n = best
    alike = [
        p[0, 1 + i] * p[1, i + n]
        for i in range(len(tokens) - n + 1)
        if n and i != at and list(tokens[i : i + n]) == list(tokens[at : at + n])
    ]
    return at, n, worth / (every - sum(alike))


@settings(max_examples=150)
@given(st.lists(st.integers(1, 3), max_size=14), st.integers(1, 5), st.integers(0, 10**6))
def test_the_best_span_is_the_best_of_all(tokens, longest, seed):
    random = numpy.random.default_rng(seed)
    logits, null = random.normal(0, 2, (2, len(tokens))), random.normal(0, 2, 2)
    found = best_span(numpy.array(tokens, dtype=int), logits, null, longest, 100)
    at, n, confidence = brute_span(tokens, logits, null, longest)
    assert (found.num_tokens, found.start) == (n, 100 + at)
    assert found.confidence() == pytest.approx(confidence, rel=1e-5)


def test_ends_before_starts_are_no_spans():
    """The broken twin: the likeliest start and the likeliest end, each for itself, would be no span at all."""
    logits = numpy.array([[0.0, 0, 9, 0], [9.0, 0, 0, 1]])
    found = best_span(numpy.arange(4), logits, numpy.full(2, -9.0), 4, 0)
    assert logits.argmax(1).tolist() == [2, 0] and found.num_tokens > 0
    assert (found.start, found.start + found.num_tokens - 1) == (2, 3)


GIVEN = [
    Question("1", "ab", (Passage("fedcbafed", ((3, 6),)),), ("cba",)),
    Question("2", "c", (Passage("aabbccddeeffabc" * 2, ((2, 4),)), Passage("dddd")), ("bb",)),
    Question("3", "dd", (Passage("abc"),), ()),
]


@pytest.mark.parametrize("name", READERS)
def test_a_batch_is_the_sum_of_its_rows(name):
    """Padding and the rows beside it do not change a row's loss; gradients too."""
    own = dataclasses.replace(SETTINGS, reader=name)
    model = bert(hf.BertForQuestionAnswering if name == "span" else hf.BertForMaskedLM)
    model = as_prefix_lm(model, TOKENIZER) if name == "prefix" else model
    rows, counts = TASK.encode(GIVEN, TOKENIZER, own)
    assert counts["rows_answered"] and counts["rows_abstaining"] and len({len(row["input_ids"]) for row in rows}) > 1
    objective = READERS[name].objective
    whole = objective(model, collate(rows, 0))
    parts = [objective(model, collate([row], 0)) for row in rows]
    assert whole.detach().total == pytest.approx(sum(one.detach().total for one in parts), rel=1e-12)
    assert int(whole.weight) == sum(int(one.weight) for one in parts) > len(rows)
    weights = [p for p in model.parameters() if p.requires_grad]
    a = torch.autograd.grad(whole.total, weights, allow_unused=True)
    b = torch.autograd.grad(sum(one.total for one in parts), weights, allow_unused=True)
    for x, y in zip(a, b, strict=True):
        assert (x is None and y is None) or (x - y).abs().max() <= 1e-11 * max(1, y.abs().max())


def test_padding_in_the_softmax_of_spans_is_caught():
    """The broken twin: a softmax over all positions makes a row's loss depend on its padding."""
    model = bert(hf.BertForQuestionAnswering)
    rows, _ = TASK.encode(GIVEN, TOKENIZER, dataclasses.replace(SETTINGS, reader="span"))
    short = min(rows, key=lambda row: len(row["input_ids"]))
    losses = []
    for width in (len(short["input_ids"]), 60):
        batch = collate([short], 0, pad_to=width)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        twin = torch.nn.functional.cross_entropy(span_logits(model, inputs).flatten(0, 1), batch["labels"].flatten())
        losses.append(float(twin))
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("name", READERS)
def test_rows_are_the_articles(name):
    """What a row looks like, decoded; its targets spell the answer."""
    own = dataclasses.replace(SETTINGS, reader=name)
    (row,), _ = TASK.encode(GIVEN[:1], TOKENIZER, own)
    spelled = TOKENIZER.convert_ids_to_tokens(row["input_ids"].tolist())
    labels = row["labels"][row["labels"] != -100].tolist()
    window = ["f", "e", "d", "c", "b", "a", "f", "e", "d"]
    if name == "span":
        assert spelled == ["[CLS]", "a", "b", "[SEP]", *window, "[SEP]"]
        assert spelled[labels[0] : labels[1] + 1] == ["c", "b", "a"]
        assert row["places"].tolist() == [1, 0, 0, 0, *[1] * 9, 0]
        return
    assert TOKENIZER.convert_ids_to_tokens(labels) == ["c", "b", "a", "[SEP]"]
    if name == "masked":
        assert spelled == ["[CLS]", *["[MASK]"] * 5, "[SEP]", "a", "b", "[SEP]", *window, "[SEP]"]
        return
    assert spelled == ["[CLS]", *window, "[SEP]", "a", "b", "[SEP]", "c", "b", "a", "[SEP]"]
    assert row["token_type_ids"].tolist() == [0] * 14 + [1] * 4
    assert [spelled[at + 1] for at in row["places"]] == ["c", "b", "a", "[SEP]"]


@pytest.mark.parametrize("name", READERS)
def test_a_tiny_model_learns_to_read(name):
    own = dataclasses.replace(SETTINGS, reader=name)
    torch.manual_seed(0)
    kind = hf.BertForQuestionAnswering if name == "span" else hf.BertForMaskedLM
    model = kind(hf.BertConfig(vocab_size=len(TOKENIZER), **SMALL | {"hidden_size": 32}, **DROPLESS))
    model = as_prefix_lm(model, TOKENIZER) if name == "prefix" else model
    rows, _ = TASK.encode(GIVEN, TOKENIZER, own)
    batch, objective = collate(rows, 0), READERS[name].objective
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(120):
        tally = objective(model, batch)
        optimizer.zero_grad()
        tally.mean().backward()
        optimizer.step()
    found = READERS[name].answer(model, TOKENIZER, GIVEN, own, batch_size=2)
    assert model.training and [one.text for one in found] == ["cba", "bb", ""]
    assert all(one.confidence > 0.5 for one in found)


def test_a_row_that_the_model_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="at most 96"):
        answer_by_span(
            bert(hf.BertForQuestionAnswering), TOKENIZER, [Question("1", "a", (Passage("ab" * 80),), None)],
            ReadSettings(reader="span", window_tokens=150, question_tokens=8),
        )  # fmt: skip
    with pytest.raises(ValueError, match="expected a prefix LM"):
        rereading(bert())
