"""Tokenizers of our own: what they write they read back, as saved, with nothing of ours in the process."""

import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from jieyue.errors import InputError
from jieyue.hf.tokenizers import SPECIAL_TOKENS, learn_vocabulary, make_tokenizer, read_vocabulary

TEXTS = [
    "你好，我们在2019年用 Python 写程序。",
    "The museum opens at 9:30 on Monday.",
    "Anna Ashford works in Redham. Bruno Ashley works in Redport.",
] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(learn_vocabulary(TEXTS, 300))


def test_special_tokens_come_first(tokenizer):
    vocabulary = learn_vocabulary(TEXTS, 300)
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


def test_learning_is_deterministic():
    code = f"from jieyue.hf.tokenizers import learn_vocabulary; print(learn_vocabulary({TEXTS!r}, 250))"
    outputs = {
        subprocess.run([sys.executable, "-X", "utf8", "-c", code], capture_output=True, check=True, env=None).stdout
        for _ in range(2)
    }
    assert outputs == {f"{learn_vocabulary(TEXTS, 250)}\n".encode()}


def test_every_character_is_kept_beyond_the_size():
    characters = "".join(map(chr, range(0x4E00, 0x4E00 + 500)))
    assert set(characters) <= set(learn_vocabulary([characters], 200))


def test_case():
    cased = make_tokenizer(learn_vocabulary(TEXTS, 300, lowercase=False), lowercase=False)
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
    with pytest.raises(InputError, match="at least 200"):
        learn_vocabulary(TEXTS, 10)
