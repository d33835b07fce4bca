"""Tokenizers of our own: what they write they read back, as saved, with nothing of ours in the process."""

import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, BertConfig, BertTokenizerFast, PreTrainedTokenizerFast

from jieyue.errors import InputError
from jieyue.hf import word_pieces
from jieyue.hf.tokenizers import SPECIAL_TOKENS, learn_vocabulary, make_tokenizer, read_vocabulary, write_chinese
from jieyue.hf.word_pieces import learn_pieces

TEXTS = [
    "你好，我们在2019年用 Python 写程序。",
    "The museum opens at 9:30 on Monday.",
    "Anna Ashford works in Redham. Bruno Ashley works in Redport.",
] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(learn_vocabulary(TEXTS, 60))


def test_special_tokens_come_first(tokenizer):
    vocabulary = learn_vocabulary(TEXTS, 60)
    assert vocabulary[:5] == list(SPECIAL_TOKENS.values()) and len(set(vocabulary)) == len(vocabulary)
    assert [tokenizer.pad_token_id, tokenizer.mask_token_id, len(tokenizer)] == [0, 4, len(vocabulary)]


def test_chinese_characters_stand_alone_and_new_words_are_spelled(tokenizer):
    assert tokenizer.tokenize("你好我们") == ["你", "好", "我", "们"]
    assert tokenizer.unk_token_id not in tokenizer("zyxw QVK 86420")["input_ids"]
    assert tokenizer.tokenize("龘") == ["[UNK]"]


def test_pairs_and_offsets(tokenizer):
    text, pair = "Anna 在 Redham", "她?"
    row = tokenizer(text, pair, return_offsets_mapping=True)
    assert set(row) == {"input_ids", "attention_mask", "offset_mapping"}
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert tokens[0] == "[CLS]" and tokens.count("[SEP]") == 2 and tokens[-1] == "[SEP]"
    found = "".join(
        text[a:b] for (a, b), sequence in zip(row["offset_mapping"], row.sequence_ids(), strict=True) if sequence == 0
    )
    assert found == text.replace(" ", "")


@pytest.mark.parametrize("text", ["你好，我们写程序。", "the museum opens on monday.", "anna在redham写程序"])
def test_decoding_restores(tokenizer, text):
    decoded = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
    assert decoded.replace(" ", "") == text.replace(" ", "") and "  " not in decoded
    if text.isascii() or all(not c.isascii() for c in text):
        assert decoded == text


def test_streaming_decodes_alike(tokenizer):
    from tokenizers.decoders import DecodeStream

    ids = tokenizer("你好 we 我们写", add_special_tokens=False)["input_ids"]
    stream = DecodeStream(skip_special_tokens=True)
    pieces = [stream.step(tokenizer.backend_tokenizer, token) or "" for token in ids]
    assert "".join(pieces) == tokenizer.decode(ids) == "你好 we我们写"


def test_saved_tokenizer_is_plain(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert again.decode(again(text)["input_ids"]) == tokenizer.decode(tokenizer(text)["input_ids"])
    assert again.decode(again("你好")["input_ids"], skip_special_tokens=True) == "你好"
    assert again.model_max_length == 8192 and again.mask_token == "[MASK]"


PUNCTUATED = "他说：“你好”——𠮷野家（in Tokyo）……the best·好，3个“word”."


@pytest.fixture(scope="module")
def punctuated():
    characters = sorted({c for c in PUNCTUATED if not c.isascii()} | {"3", "."})
    return [*SPECIAL_TOKENS.values(), *characters, "in", "tokyo", "the", "best", "word", "##s", "we"]


def stream(tokenizer, ids):
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=True)
    return "".join(stream.step(tokenizer.backend_tokenizer, token) or "" for token in ids)


def test_punctuation_and_rare_characters(punctuated):
    tokenizer = make_tokenizer(punctuated)
    ids = tokenizer(PUNCTUATED, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    decoded = tokenizer.decode(ids)
    assert decoded == "他说：“你好”——𠮷野家（in tokyo）…… the best·好，3个“word”." == stream(tokenizer, ids)


@given(st.lists(st.integers(5, 30), max_size=30))
def test_streaming_decodes_any_tokens_alike(ids):
    tokenizer = make_tokenizer(
        [*SPECIAL_TOKENS.values(), *"他说“”—（）…·，。!.‘’%好我a3龘", "we", "##s", "##ly", "hello"]
    )
    assert stream(tokenizer, ids) == tokenizer.decode(ids)


def test_a_checkpoints_tokenizer_writes_chinese(punctuated, tmp_path):
    bert = BertTokenizerFast(vocab={token: number for number, token in enumerate(punctuated)}, padding_side="left")
    bert.chat_template = "{{ messages }}"
    bert.add_special_tokens({"additional_special_tokens": ["[speaker1]"]})
    bert.add_tokens(["新词"])
    before = bert(PUNCTUATED + "新词[speaker1]", "we")
    made = write_chinese(bert)
    made.save_pretrained(tmp_path)
    BertConfig(vocab_size=len(made)).save_pretrained(tmp_path)
    for one in (made, AutoTokenizer.from_pretrained(tmp_path)):
        assert one(PUNCTUATED + "新词[speaker1]", "we") == before
        assert one.decode(one("他说新词“你好”")["input_ids"], skip_special_tokens=True) == "他说新词“你好”"
        assert one.chat_template == "{{ messages }}" and one.padding_side == "left" and len(one) == len(bert)
        assert one.special_tokens_map["mask_token"] == "[MASK]" and "[speaker1]" in one.all_special_tokens
    assert " 说" in bert.decode(bert("他说")["input_ids"])  # what it would have been
    with pytest.raises(InputError, match="WordPiece"):
        write_chinese(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([("a", -1.0)]))))


def test_learning_is_deterministic():
    """Not even the order of hashing, which differs from process to process, has a say."""
    counts = dict.fromkeys(("abc", "abd", "bcd", "cda", "dab"), 3)
    code = f"import runpy; print(runpy.run_path({word_pieces.__file__!r})['learn_pieces']({counts!r}, 9))"
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert done.stdout.strip() == str(learn_pieces(counts, 9))
    assert learn_vocabulary(TEXTS, 50) == learn_vocabulary(iter(TEXTS), 50)


def test_every_character_is_kept_whatever_the_number_of_pieces():
    characters = "".join(map(chr, range(0x4E00, 0x4E00 + 500)))
    assert set(characters) <= set(learn_vocabulary([characters], 0))


def pieces_by_definition(counts, num_pieces):
    """The slow oracle: count all pairs again before every join."""
    words = {word: [word[0], *(f"##{c}" for c in word[1:])] for word in counts}
    learned = []
    while len(learned) < num_pieces:
        pairs = Counter()
        for word, pieces in words.items():
            for pair in pairwise(pieces):
                pairs[pair] += counts[word]
        if not pairs or max(pairs.values()) < 2:
            break
        first, second = min(pairs, key=lambda pair: (-pairs[pair], pair))
        joined = first + second[2:]
        learned += [joined] if joined not in learned else []
        for pieces in words.values():
            at = 0
            while at < len(pieces) - 1:
                if pieces[at : at + 2] == [first, second]:
                    pieces[at : at + 2] = [joined]
                at += 1
    return learned


@given(st.dictionaries(st.text("abc", min_size=1, max_size=8), st.integers(1, 9), max_size=8), st.integers(0, 12))
def test_pieces(counts, num_pieces):
    assert learn_pieces(counts, num_pieces) == pieces_by_definition(counts, num_pieces)


def test_case():
    cased = make_tokenizer(learn_vocabulary(TEXTS, 60, lowercase=False), lowercase=False)
    assert cased.decode(cased("Anna works")["input_ids"], skip_special_tokens=True) == "Anna works"


def test_vocabulary_file(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(
        "\ufeff".encode() + "\r\n".join([*SPECIAL_TOKENS.values(), "你", "好", "a", "##b"]).encode() + b"\r\n"
    )
    assert read_vocabulary(path)[-4:] == ["你", "好", "a", "##b"]
    assert make_tokenizer(path).tokenize("你好 ab") == ["你", "好", "a", "##b"]
    path.write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"no \[PAD\]"):
        make_tokenizer(path)
    path.write_text("\n".join([*SPECIAL_TOKENS.values(), "a", "a"]), encoding="utf-8")
    with pytest.raises(InputError, match="'a' twice"):
        make_tokenizer(path)
    with pytest.raises(InputError, match="0 or more"):
        learn_vocabulary(TEXTS, -1)
