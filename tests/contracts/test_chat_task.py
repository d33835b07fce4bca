"""The dialogue recipe: rows and counts, one loss for packed and single rows, replies, scores, causal from masked, a talk."""

import copy
import json
import math
from collections import Counter

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertLMHeadModel, LlamaForCausalLM

from jieyue.data.corpora.everyday import compose_talks
from jieyue.data.dialogues import DialogueFiles, digest_of
from jieyue.data.history import Message, alternate, encode_talks, template_for
from jieyue.decoding.rerank import rerank
from jieyue.decoding.sampling import Sampling
from jieyue.errors import InputError
from jieyue.hf.causal import made_causal
from jieyue.hf.causal_presets import CAUSAL_PRESETS, build_causal, causal_config
from jieyue.hf.loading import save
from jieyue.hf.lossless_pieces import learn_lossless_vocabulary, make_lossless_tokenizer
from jieyue.hf.presets import build
from jieyue.hf.tokenizers import learn_vocabulary, make_tokenizer
from jieyue.hf.use import use
from jieyue.report import Report
from jieyue.run.conversation import Conversation
from jieyue.tally import Tally
from jieyue.tasks import RunConfig
from jieyue.tasks.chat import rows as chat_rows
from jieyue.tasks.chat.models import open_chat_model
from jieyue.tasks.chat.replies import fits, log_probability, reply_to, score_replies
from jieyue.tasks.chat.settings import ChatSettings
from jieyue.tasks.chat.task import TASK
from jieyue.tasks.sources import sampled
from jieyue.training.objective import token_loss

TALKS = compose_talks(0, 40)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "initializer_range": 0.3}


@pytest.fixture(scope="module")
def tokenizer():
    made = make_lossless_tokenizer(learn_lossless_vocabulary([one.text for talk in TALKS for one in talk], 200))
    made.chat_template = template_for(made)
    return made


@pytest.fixture(scope="module")
def model(tokenizer):
    return build_causal("tiny", tokenizer, seed=1, **SMALL).double().eval()


def batch_of(rows, tokenizer):
    from jieyue.data.batch import collate

    return collate([rows[number] for number in range(len(rows))], tokenizer.pad_token_id)


@pytest.mark.parametrize("loss_on", ["all", "replies", "last"])
def test_packed_rows_have_the_loss_of_single_ones(model, tokenizer, loss_on):
    """Sums and counts, float64, against plain logits of every dialogue alone."""
    found = []
    for row_tokens in (None, 128):
        rows, _ = TASK.encode(TALKS, tokenizer, ChatSettings(loss_on=loss_on, row_tokens=row_tokens))
        with torch.no_grad():
            found.append(chat_rows.dialogue_loss(model, batch_of(rows, tokenizer)))
    total = Tally(torch.zeros((), dtype=torch.float64), torch.zeros(()))
    for talk, messages in zip(encode_talks(tokenizer, TALKS), TALKS, strict=True):
        ids = torch.from_numpy(talk.ids).long()[None]
        labels = torch.full_like(ids, -100)
        for number, ((first, stop), one) in enumerate(zip(talk.turns, messages, strict=True)):
            if loss_on == "all" or (loss_on == "replies" and one.role == "assistant") or number == len(messages) - 1:
                labels[0, first:stop] = ids[0, first:stop]
        with torch.no_grad():
            total += token_loss(model(input_ids=ids).logits[:, :-1], labels[:, 1:])
    for one in found:
        assert int(one.weight) == int(total.weight)
        torch.testing.assert_close(one.total, total.total, rtol=1e-12, atol=0)


def test_a_packed_row_without_borders_is_noticed(model, tokenizer):
    """The broken twin: positions that do not start again."""
    rows, _ = TASK.encode(TALKS, tokenizer, ChatSettings(row_tokens=128))
    batch = batch_of(rows, tokenizer)
    with torch.no_grad():
        right = chat_rows.dialogue_loss(model, batch).total
        batch["position_ids"] = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
        assert abs(chat_rows.dialogue_loss(model, batch).total - right) > 1e-6 * right


def test_what_is_too_long_is_dropped_and_counted(tokenizer):
    settings = ChatSettings(max_tokens=40)
    rows, counts = TASK.encode(TALKS, tokenizer, settings)
    whole = [len(talk.ids) for talk in encode_talks(tokenizer, TALKS)]
    assert counts["dialogues_shortened"] == sum(length > 40 for length in whole) > 0
    assert counts["turns_dropped"] > 0 and rows.lengths.max() <= 40
    assert counts["rows"] == len(rows) == len(TALKS)
    first = next(number for number, length in enumerate(whole) if length > 40)
    text = tokenizer.decode(rows[first]["input_ids"], skip_special_tokens=True)
    assert text.endswith(TALKS[first][-1].text)  # the newest turns stay
    rows, counts = TASK.encode([alternate(["你好" * 30])], tokenizer, ChatSettings(max_tokens=10))
    assert counts["turns_cut"] == 1 and len(rows[0]["input_ids"]) == 10
    rows, counts = TASK.encode([alternate(["你好"]), TALKS[0]], tokenizer, ChatSettings(loss_on="replies"))
    assert counts["dialogues_without_loss"] == 1 and len(rows) == 1


def test_the_files_of_the_rows_leave_nothing_behind(tokenizer):
    """They have no name any more once they are written, so that not even a kill leaves them."""
    rows, _ = TASK.encode(TALKS[:3], tokenizer, ChatSettings())
    assert not rows.tokens.folder.exists()
    assert len(rows) > 0 and all(len(row["input_ids"]) for row in rows)


@pytest.fixture
def tokenised(monkeypatch):
    """How many dialogues were tokenised."""
    seen, own = [], chat_rows.encode_talks
    monkeypatch.setattr(chat_rows, "encode_talks", lambda maker, talks: seen.extend(talks) or own(maker, talks))
    return seen


def test_kept_tokens_are_found_again(tokenizer, tokenised, tmp_path):
    """The same rows and counts, and nothing is tokenised twice; padding that a call asked for changes nothing."""
    settings = ChatSettings(max_tokens=40, row_tokens=64)
    (first, told), (plain, same) = (TASK.encode(TALKS, tokenizer, settings, folder=at) for at in (tmp_path / "t", None))
    assert len(tokenised) >= 2 * len(TALKS) and told == same | {"rows_found_again": 0} and first.digest
    tokenised.clear()
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=9)
    again, known = TASK.encode(TALKS, tokenizer, settings, folder=tmp_path / "t")
    assert tokenised == [] and again.digest == first.digest and plain.digest is None
    assert known == told | {"rows_found_again": len(again)} and told["turns_dropped"] > 0
    for one, other in zip(first, again, strict=True):
        assert all((one[name] == other[name]).all() for name in one)
    shorter, _ = TASK.encode(TALKS, tokenizer, ChatSettings(max_tokens=40), folder=tmp_path / "t")
    assert len(shorter) == len(TALKS) and tokenised == []  # how dialogues share rows is no matter of tokens


@pytest.mark.parametrize("change", ["dialogues", "max_tokens", "loss_on", "tokenizer", "template", "version", "damage"])
def test_stale_tokens_are_made_anew(tokenizer, tokenised, tmp_path, change, monkeypatch):
    talks, settings = TALKS[:9], ChatSettings(max_tokens=40)
    before, _ = TASK.encode(talks, tokenizer, settings, folder=tmp_path / "t")
    held = before[0]["input_ids"].tolist()
    match change:
        case "dialogues":
            talks = [*talks[:-1], (*talks[-1][:-1], Message("assistant", "no"))]
        case "max_tokens":
            settings = ChatSettings(max_tokens=30)
        case "loss_on":
            settings = ChatSettings(max_tokens=40, loss_on="last")
        case "tokenizer":
            tokenizer = make_lossless_tokenizer(learn_lossless_vocabulary([TALKS[0][0].text], 90))
        case "template":
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.chat_template = tokenizer.chat_template.replace("{{- cls_token }}", "")
        case "version":
            monkeypatch.setattr(chat_rows, "__version__", "0")
        case "damage":
            with (tmp_path / "t" / "ids.i32").open("ab") as file:
                file.write(b"\0\0\0\0")
    tokenised.clear()
    after, counts = TASK.encode(talks, tokenizer, settings, folder=tmp_path / "t")
    plain, _ = TASK.encode(talks, tokenizer, settings)
    assert len(tokenised) >= len(talks) and counts["rows_found_again"] == 0
    assert (after.digest == before.digest) == (change == "damage")
    assert [row["input_ids"].tolist() for row in after] == [row["input_ids"].tolist() for row in plain]
    assert before[0]["input_ids"].tolist() == held  # another process may still read the old files
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_unfinished_tokens_do_not_count(tokenizer, tokenised, tmp_path):
    def stopped(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_rows, "encode_talks", stopped)
        with pytest.raises(KeyboardInterrupt):
            TASK.encode(TALKS[:9], tokenizer, ChatSettings(), folder=tmp_path / "t")
    assert list(tmp_path.iterdir()) == []
    TASK.encode(TALKS[:9], tokenizer, ChatSettings(), folder=tmp_path / "t")
    assert len(tokenised) == 9


def test_a_digest_is_of_what_is_said(tmp_path):
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(json.dumps([f"q{n}", f"a{n}"]) for n in range(50)), encoding="utf-8")
    files = DialogueFiles(path, held_out=0.1, limit=30)
    assert files.digest == digest_of(list(files)) == DialogueFiles(path, held_out=0.1, limit=30).digest
    others = [DialogueFiles(path, held_out=0.1), DialogueFiles(path, limit=30), list(files)[::-1], files[:1]]
    assert len({files.digest, *map(digest_of, others)}) == 5


def test_a_limit_takes_a_sample_of_all(tmp_path):
    """The fault: the first ones stood for all. Neither the seed nor what is held out is of account."""
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(json.dumps([f"q{n}", f"a{n}"]) for n in range(200)), encoding="utf-8")
    numbers = [int(talk[0].text[1:]) for talk in DialogueFiles(path, limit=40)]
    assert len(numbers) == 40 and numbers == sorted(numbers) and numbers[-1] > 150 and numbers[:40] != list(range(40))
    assert [talk[0].text for talk in sampled(list(DialogueFiles(path)), 40, "train")] == [f"q{n}" for n in numbers]
    with_held = DialogueFiles(path, limit=40, held_out=0.2)
    assert len(with_held) == 40 and list(with_held)[-1][0].text > "q1" and len(with_held.held) > 20
    assert len(DialogueFiles(path, limit=300)) == 200
    first, second = (TASK.shipped(30, 0)[0] for _ in range(2))
    assert first == second != compose_talks(0)[:30]


def test_files_are_read_anew_and_split(tmp_path):
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(json.dumps([f"q{n}", f"a{n}"]) for n in range(500)), encoding="utf-8")
    files = DialogueFiles(path, held_out=0.1, limit=300)
    assert len(files) == len(list(files)) == len(list(files)) == 300
    assert 20 < len(files.held) < 90
    assert not {talk[0].text for talk in files} & {talk[0].text for talk in files.held}
    assert files[2] == list(files)[2] and files[1:3] == list(files)[1:3]


def greedy_alone(model, tokenizer, talk, most):
    (encoded,) = encode_talks(tokenizer, [talk])
    said = []
    while len(said) < most:
        with torch.no_grad():
            ids = torch.tensor([[*encoded.ids.tolist(), *said]])
            said.append(int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax()))
        if said[-1] == tokenizer.sep_token_id:
            break
    return tokenizer.decode(said, skip_special_tokens=True).strip()


def test_parts_by_split_are_found_in_the_encoding_that_was_named(tmp_path):
    """UTF-16 without a mark: which part is held out is told by the same encoding as the dialogues."""
    parts = {"train": [["先学", "好的"]], "valid": [["再问", "可以"], ["吃了吗", "吃了"]]}
    path = tmp_path / "talks.json"
    path.write_bytes(json.dumps(parts, ensure_ascii=False).encode("utf-16-le"))
    found, _ = TASK.read([path], ChatSettings(encoding="utf-16-le"))
    assert [one[0].text for one in found] == ["再问", "吃了吗"]


def test_replies_of_a_batch_are_those_of_each_alone(model, tokenizer):
    settings = ChatSettings(reply_tokens=12)
    contexts = [talk[:1] for talk in TALKS[:7]] + [talk[:3] for talk in TALKS[:4]]
    found = reply_to(model, tokenizer, contexts, settings, batch_size=4)
    assert found == [greedy_alone(model, tokenizer, talk, 12) for talk in contexts]


def test_a_turn_that_cannot_be_read_does_not_stop_the_judging(model, tokenizer):
    """Its reply is silence, and the report says how many; the others are as they would be without it."""
    talks = [alternate(["hi", "hello there"]), alternate(["word " * 60, "no"]), alternate(["你好", "你好呀"])]
    settings = ChatSettings(max_tokens=30, reply_tokens=6)
    judged = TASK.judge(model, tokenizer, talks, settings)
    assert judged.scores["too_long"] == 1 and judged.answers[1] == ""
    alone = TASK.judge(model, tokenizer, [talks[0], talks[2]], settings)
    assert alone.scores["too_long"] == 0 and [judged.answers[0], judged.answers[2]] == alone.answers
    report = Report("any")
    TASK.report(report, judged, settings, {})
    assert "too long to read" in report.markdown()
    system = (Message("system", "word " * 60), Message("user", "hi"))
    assert fits(tokenizer, talks[0], settings) and not fits(tokenizer, system, settings)


def test_drawn_replies_are_those_of_each_alone(model, tokenizer):
    settings = ChatSettings(reply_tokens=12)
    contexts = [talk[:1] for talk in TALKS[:5]]
    drawn = reply_to(model, tokenizer, contexts, settings, batch_size=2, sampling=Sampling(top_k=0, seed=7))
    assert drawn == reply_to(model, tokenizer, contexts, settings, sampling=Sampling(top_k=0, seed=7))
    for number, context in enumerate(contexts):
        assert drawn[number : number + 1] == reply_to(
            model, tokenizer, [context], settings, sampling=Sampling(top_k=0, seed=7 + number)
        )
    assert drawn != reply_to(model, tokenizer, contexts, settings, sampling=Sampling(top_k=0, seed=8))
    likeliest = reply_to(model, tokenizer, contexts, settings)
    assert likeliest == reply_to(model, tokenizer, contexts, settings, sampling=Sampling(temperature=0))


def test_perplexities_and_scores(model, tokenizer):
    loss, characters = log_probability(model, tokenizer, TALKS, ChatSettings(), batch_size=7)
    rows, _ = TASK.encode(TALKS, tokenizer, ChatSettings())
    with torch.no_grad():
        one = chat_rows.dialogue_loss(model, batch_of(rows, tokenizer))
    assert loss.weight == int(one.weight) and math.isclose(loss.total, float(one.total), rel_tol=1e-5)
    assert characters == sum(len("".join(turn.text.split())) for talk in TALKS for turn in talk)
    golds = ["你好吗", "see you later at nine"]
    scores = score_replies(golds, golds, loss, characters)
    assert scores["bleu_4"] == 1 and scores["bleu_2"] == 1 and scores["dist_1"] == 1 and scores["repetition"] == 0
    assert math.isclose(scores["perplexity_character"], math.exp(loss.total / characters))
    worse = score_replies(["", "at at at at at at"], golds, loss, characters)
    assert worse["bleu_2"] < 0.1 and worse["repetition"] > 0
    silent = score_replies(["", "…"], golds, loss, characters)
    assert silent["dist_1"] == silent["dist_2"] == silent["entropy_4"] == silent["mean_words"] == 0


@pytest.mark.parametrize("wrong", [{"loss_on": "none"}, {"max_tokens": 1}, {"row_tokens": 0}, {"reply_tokens": 0}])
def test_settings_are_checked(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        ChatSettings(**wrong)


def test_presets(tokenizer):
    assert {
        name: build_causal(name, tokenizer).num_parameters() > least
        for name, least in (("tiny", 10**6), ("small", 2e7))
    }
    for name in CAUSAL_PRESETS:
        config = causal_config(name, tokenizer)
        assert config.num_key_value_heads < config.num_attention_heads
    one, two, other = (build_causal("tiny", tokenizer, seed=seed, **SMALL) for seed in (1, 1, 2))
    weights = [made.model.layers[0].mlp.up_proj.weight for made in (one, two, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    with pytest.raises(InputError, match="huge"):
        causal_config("huge", tokenizer)
    for attention in (None, "local(8)"):
        assert TASK.default_settings(RunConfig(attention=attention), 0).row_tokens


@pytest.mark.parametrize("attention", ["full()", "first(2)+local(4)+atrous(7)", "local(3)+linear(elu)"])
def test_dialogues_share_rows_under_any_attention(model, tokenizer, attention):
    """Loss and gradients, float64, against a row for each dialogue."""
    use(model, attention=attention)
    found = []
    for row_tokens in (None, 128):
        rows, _ = TASK.encode(TALKS, tokenizer, ChatSettings(row_tokens=row_tokens))
        model.zero_grad()
        tally = chat_rows.dialogue_loss(model, batch_of(rows, tokenizer))
        tally.total.backward()
        found.append((tally, torch.cat([p.grad.flatten() for p in model.parameters()])))
    use(model, attention=None)
    (alone, expected), (shared, own) = found
    assert int(alone.weight) == int(shared.weight)
    torch.testing.assert_close(shared.total, alone.total, rtol=1e-12, atol=0)
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-11 * float(expected.abs().max()))


def test_a_masked_model_is_turned_causal():
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        hidden_dropout_prob=0,
    )
    masked = BertForMaskedLM(config)
    state = dict(masked.state_dict().items())
    bidirectional = BertLMHeadModel(config)
    bidirectional.load_state_dict(state, strict=False)
    causal = made_causal(bidirectional)
    assert causal is not bidirectional and made_causal(causal) is causal
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 9]])
    with torch.no_grad():
        logits = causal(input_ids=ids).logits
    torch.testing.assert_close(logits[0, :3], logits[1, :3])
    assert torch.equal(causal.bert.embeddings.word_embeddings.weight, masked.bert.embeddings.word_embeddings.weight)


def test_eurobert_becomes_the_llama_it_is_under_a_causal_mask(tmp_path):
    """The presets of reading are EuroBERTs: under a causal mask their logits are those of the Llama with their weights."""
    tokenizer = make_tokenizer(learn_vocabulary(["one two three four five six"] * 3))
    model = build("tiny", tokenizer, seed=1).double().eval()
    save(model, tokenizer, tmp_path, {})
    talker = open_chat_model(RunConfig(model=str(tmp_path)), list)
    causal = talker.build()
    assert isinstance(causal, LlamaForCausalLM) and causal.dtype == torch.float64
    ids = torch.arange(9)[None] % len(tokenizer)
    seen = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        wanted = model(input_ids=ids, attention_mask=seen).logits
        torch.testing.assert_close(causal(input_ids=ids).logits, wanted, rtol=1e-11, atol=1e-11)
        assert not torch.allclose(model(input_ids=ids).logits, wanted, rtol=1e-3, atol=1e-3)


def test_a_pattern_that_was_saved_stays_when_eurobert_turns_causal(tmp_path):
    tokenizer = make_tokenizer(learn_vocabulary(["one two three four five six"] * 3))
    model = build("tiny", tokenizer, seed=1)
    use(model, attention="local(2)")
    save(model, tokenizer, tmp_path, {})
    causal = open_chat_model(RunConfig(model=str(tmp_path)), list).build()
    ids = torch.arange(12)[None] % len(tokenizer)
    with torch.no_grad():
        one = causal(input_ids=ids).logits[0]
        ids[0, 0] += 1
        other = causal(input_ids=ids).logits[0]
    reach = 2 * causal.config.num_hidden_layers
    assert not torch.equal(one[reach], other[reach]) and torch.equal(one[reach + 1 :], other[reach + 1 :])


def test_sources_tell_what_training_and_held_out_share(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps([f"q{n % 50}", f"a{n % 50}", "x"]) for n in range(200)), encoding="utf-8")
    held = tmp_path / "held.jsonl"
    held.write_text(json.dumps(["q3", "a3", "x"]) + "\n" + json.dumps(["new", "talk"]), encoding="utf-8")
    sources = TASK.sources(RunConfig(data=[path], held_out=[held]), ChatSettings(), 0)
    assert sources.shared == {"dialogues": 1, "openings": 1, "replies": 1}
    sources = TASK.sources(RunConfig(data=[path]), ChatSettings(), 0)
    assert len(sources.train) + len(sources.held_out) == 200
    assert sources.shared["dialogues"] == 0  # dialogues with the same opening fall on one side
    small = tmp_path / "small.jsonl"
    small.write_text('["a", "b"]\n["c", "d"]', encoding="utf-8")
    with pytest.raises(InputError, match="held-out"):
        TASK.sources(RunConfig(data=[small]), ChatSettings(), 0)


def test_a_talk_reads_each_token_once(model, tokenizer):
    """Its state survives the turn; the replies are those of a talk that starts anew each time."""
    talk = Conversation(model, tokenizer, Sampling(temperature=0), reply_tokens=8)
    for text in ("你好！", "今天会下雨吗？", "Thanks!"):
        said = "".join(talk.say(text))
        fresh = Conversation(model, tokenizer, Sampling(temperature=0), reply_tokens=8)
        fresh.messages = [*talk.messages[:-2]] if said.strip() else [*talk.messages[:-1]]
        assert "".join(fresh.say(text)) == said
        if len(talk.messages) > 2:
            assert talk.num_read < fresh.num_read / 2
    whole = list(talk.messages)
    assert talk.undo() and talk.messages == whole[: len(talk.messages)] and len(talk.messages) < len(whole)
    talk.clear()
    assert not talk.undo() and talk.messages == []
    with pytest.raises(InputError, match="retry"):
        next(talk.retry())


def test_long_talks_stopped_replies_and_candidates(model, tokenizer, tmp_path):
    talk = Conversation(model, tokenizer, Sampling(seed=3), reply_tokens=8, context=48)
    for _ in range(6):
        "".join(talk.say("今天会下雨吗？你说呢？"))
    assert talk.num_dropped > 0
    with pytest.raises(InputError, match="newest turn"):
        "".join(talk.say("很" * 100))
    pieces = talk.retry()
    first = next(pieces)
    pieces.close()  # Ctrl-C
    assert not first.strip() or talk.messages[-1] == Message("assistant", first.strip())
    talk.save(tmp_path / "talk.jsonl")
    assert tuple(talk.messages) == next(iter(DialogueFiles(tmp_path / "talk.jsonl")))
    many = Conversation(model, tokenizer, Sampling(seed=3), reply_tokens=6, candidates=4)
    assert len(list(many.say("你好！"))) == 1
    again = Conversation(model, tokenizer, Sampling(seed=3), reply_tokens=6, candidates=4)
    assert "".join(again.say("你好！")) == "".join(m.text for m in many.messages[1:])


def test_reranking():
    assert rerank([-3.0, -1.0, -2.0], [0.0, 0.0, 0.0]) == [1, 2, 0]
    assert rerank([-3.0, -1.0, -2.0], [-1.0, -5.0, -2.0], weight=1.0) == [0, 2, 1]
    for wrong in (([1.0], []), ([1.0], [1.0], 2.0)):
        with pytest.raises(InputError, match="rerank"):
            rerank(*wrong)


def test_unknown_tokens_are_counted(tokenizer):
    _, counts = TASK.encode([alternate(["龘龘", "你好"])], tokenizer, ChatSettings())
    assert isinstance(counts, Counter) and counts["unknown_tokens"] == 2
