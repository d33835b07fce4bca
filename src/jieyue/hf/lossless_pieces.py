"""A tokenizer for models that write: text comes back letter for letter, spaces and capitals included.

A Chinese character, a digit and a punctuation mark are a token each, a word of other scripts is word pieces; a space belongs
to the word that follows it. So "don't" and "你好，Tom" need no repair after decoding, as BERT's pieces would. The vocabulary is learned
from texts, deterministically (word_pieces.py), and any word in letters that the texts have can be spelled.
Saved as a plain ``PreTrainedTokenizerFast``, which ``AutoTokenizer`` loads, chat template and decoder included.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .tokenizers import SPECIAL_TOKENS
from .word_pieces import learn_pieces

__all__ = ["learn_lossless_vocabulary", "make_lossless_tokenizer"]

_WORD = r" ?[[\p{L}\p{M}]&&[^\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]]+|\S|\s"


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(_WORD), behavior="isolated")


def learn_lossless_vocabulary(texts: Iterable[str], num_pieces: int = 4000) -> list[str]:
    """Special tokens, every character of the texts, letters, digits and punctuation, and ``num_pieces`` pieces of words."""
    splitter, normalizer = _pre_tokenizer(), normalizers.NFC()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    spelling = set(string.ascii_letters + string.digits)
    alone = {" ", "\n", *string.punctuation, *spelling} | {char for word in counts for char in word}
    continuing = {f"##{char}" for char in spelling} | {f"##{char}" for word in counts for char in word[1:]}
    return [*SPECIAL_TOKENS.values(), *sorted(alone), *sorted(continuing), *learn_pieces(counts, num_pieces)]


def make_lossless_tokenizer(vocabulary: Sequence[str], *, max_length: int = 8192) -> PreTrainedTokenizerFast:
    """The tokenizer of a vocabulary; ``[CLS]`` also begins a text for ``generate`` and ``[SEP]`` ends a turn."""
    numbers = {token: number for number, token in enumerate(vocabulary)}
    backend = Tokenizer(models.WordPiece(numbers, unk_token=SPECIAL_TOKENS["unk_token"], max_input_chars_per_word=100))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer()
    backend.decoder = decoders.Sequence([decoders.Replace(Regex("^##"), ""), decoders.Fuse()])
    cls, sep = SPECIAL_TOKENS["cls_token"], SPECIAL_TOKENS["sep_token"]
    backend.post_processor = processors.TemplateProcessing(single=f"{cls} $A", special_tokens=[(cls, numbers[cls])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        bos_token=cls,
        eos_token=sep,
        **SPECIAL_TOKENS,
    )
