"""A tokenizer for models that start from scratch: one token for a Chinese character, word pieces for everything else.

The vocabulary is given (a list, or a ``vocab.txt`` as BERT checkpoints have it) or learned from texts, with every
character of the texts in it and every letter and digit, so that any new name or number can be written. The result is a
``PreTrainedTokenizerFast`` that plain ``AutoTokenizer`` loads, its decoder included: Chinese comes out without spaces.
(``BertTokenizer`` would rebuild its decoder on loading and lose that.)
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from jieyue.errors import InputError

from .word_pieces import learn_pieces

__all__ = ["SPECIAL_TOKENS", "learn_vocabulary", "make_tokenizer", "read_vocabulary", "with_backend", "write_chinese"]

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_CJK = r"\x{3000}-\x{30FF}\x{3400}-\x{9FFF}\x{AC00}-\x{D7AF}\x{F900}-\x{FAFF}\x{FF00}-\x{FFEF}\x{20000}-\x{3134F}"
_FULL_WIDTH = r"\x{3000}-\x{303F}\x{FF00}-\x{FFEF}"
# Where a space between two tokens was none in the text: one token of context on the left is all that is looked at, so that
# a decoder that streams says the same.
_NO_SPACE = (
    f" +(?=[{_CJK}])",
    f"(?<=[{_FULL_WIDTH}“‘]) +",
    " +(?=[”’·])",
    f"(?<=[{_CJK}”’—…·]) +(?=[“‘—…])",
    r" +(?=[,.!?;:%)\]}])",
)


def _backend(vocabulary: dict[str, int], lowercase: bool) -> Tokenizer:
    backend = Tokenizer(
        models.WordPiece(vocabulary, unk_token=SPECIAL_TOKENS["unk_token"], max_input_chars_per_word=100)
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = _decoder()
    return backend


def _decoder() -> decoders.Decoder:
    """Word pieces joined, and no spaces between Chinese characters or at punctuation."""
    return decoders.Sequence(
        [
            decoders.WordPiece("##", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(Regex("|".join(_NO_SPACE)), ""),
        ]
    )


def write_chinese(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """The same word-piece tokenizer (a checkpoint's ``BertTokenizer``), its Chinese text written without spaces.

    Encodes as before; decodes with the decoder of ``make_tokenizer``, also when streaming, and when saved and loaded by
    plain transformers. Special and added tokens, chat template, padding side and length limit are kept.
    Refuses tokenizers of another kind than WordPiece.
    """
    own = getattr(tokenizer, "backend_tokenizer", None)
    if own is None or not isinstance(own.model, models.WordPiece):
        found = type(getattr(own, "model", None)).__name__ if own is not None else type(tokenizer).__name__
        raise InputError("write_chinese(tokenizer)", found, "a WordPiece tokenizer (BERT's family)")
    backend = Tokenizer.from_str(own.to_str())
    backend.decoder = _decoder()
    return with_backend(tokenizer, backend)


def with_backend(tokenizer: PreTrainedTokenizerBase, backend: Tokenizer) -> PreTrainedTokenizerFast:
    """A plain fast tokenizer of this backend, with everything else that ``tokenizer`` says: special tokens, template, limits."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        clean_up_tokenization_spaces=False,
        extra_special_tokens=list(tokenizer.extra_special_tokens),
        **tokenizer.special_tokens_map,
    )
    made.chat_template = tokenizer.chat_template
    return made


def learn_vocabulary(texts: Iterable[str], num_pieces: int = 2000, *, lowercase: bool = True) -> list[str]:
    """Special tokens, every character of the texts, letters and digits (alone and as ``##`` pieces), ``num_pieces`` pieces.

    Few pieces are better than many here: frequent words become one token, names stay in parts that other names share,
    so that names never seen in training are made of parts that were. The same texts give the same vocabulary.
    Cost: seconds for a million words.
    """
    if num_pieces < 0:
        raise InputError(f"learn_vocabulary(num_pieces={num_pieces})", str(num_pieces), "0 or more")
    counts = _count_words(texts, lowercase)
    spelling = {char for char in string.ascii_letters + string.digits if not (lowercase and char.isupper())}
    alone = spelling | {char for word in counts for char in word}
    continuing = {f"##{char}" for char in spelling} | {f"##{char}" for word in counts for char in word[1:]}
    return [*SPECIAL_TOKENS.values(), *sorted(alone), *sorted(continuing), *learn_pieces(counts, num_pieces)]


def _count_words(texts: Iterable[str], lowercase: bool) -> Counter[str]:
    """Words as the tokenizer cuts them, counted; many texts at a time, since every call has its price."""
    backend = _backend({SPECIAL_TOKENS["unk_token"]: 0}, lowercase)
    normalizer, pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    assert normalizer is not None and pre_tokenizer is not None
    counts: Counter[str] = Counter()
    remaining = iter(texts)
    while some := list(islice(remaining, 500)):
        text = normalizer.normalize_str("\n".join(some))
        counts.update(word for word, _ in pre_tokenizer.pre_tokenize_str(text))
    return counts


def read_vocabulary(path: str | Path) -> list[str]:
    """The tokens of a ``vocab.txt``, one a line; ``InputError`` for no such file, repeated tokens or missing special ones."""
    expected = "one token a line, the special ones among them"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = "bytes that are not UTF-8" if isinstance(error, UnicodeDecodeError) else f"{error.strerror}"
        raise InputError(f"{path}", found, f"a vocab.txt: {expected}") from error
    vocabulary = text.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n").split("\n")
    missing = [token for token in SPECIAL_TOKENS.values() if token not in vocabulary]
    if missing:
        raise InputError(f"{path}", f"no {', '.join(missing)}", expected)
    if len(set(vocabulary)) != len(vocabulary):
        repeated = next(token for index, token in enumerate(vocabulary) if token in vocabulary[:index])
        raise InputError(f"{path}", f"{repeated!r} twice", "each token once")
    return vocabulary


def make_tokenizer(
    vocabulary: Sequence[str] | str | Path, *, lowercase: bool = True, max_length: int = 8192
) -> PreTrainedTokenizerFast:
    """The tokenizer of a vocabulary (a list of tokens, or the path of a ``vocab.txt``).

    ``[CLS] text [SEP]`` and ``[CLS] text [SEP] pair [SEP]``; offsets refer to the original text.
    """
    if isinstance(vocabulary, str | Path):
        vocabulary = read_vocabulary(vocabulary)
    numbers = {token: number for number, token in enumerate(vocabulary)}
    backend = _backend(numbers, lowercase)
    cls, sep = SPECIAL_TOKENS["cls_token"], SPECIAL_TOKENS["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, numbers[cls]), (sep, numbers[sep])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **SPECIAL_TOKENS,
    )
