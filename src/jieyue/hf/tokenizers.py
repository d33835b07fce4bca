"""A tokenizer for models that start from scratch: one token for a Chinese character, word pieces for everything else.

The vocabulary is given (a list, or a ``vocab.txt`` as BERT checkpoints have it) or learned from texts: WordPiece, with
every character of the texts in it and every letter and digit, so that any new name or number can be written. The
result is a ``PreTrainedTokenizerFast`` that plain ``AutoTokenizer`` loads, its decoder included: Chinese comes out
without spaces. (``BertTokenizer`` would rebuild its decoder on loading and lose that.)
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from jieyue.errors import InputError, message

__all__ = ["SPECIAL_TOKENS", "learn_vocabulary", "make_tokenizer", "read_vocabulary"]

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_SPELLING = (*string.ascii_letters, *string.digits)
_CJK = r"\x{3000}-\x{30FF}\x{3400}-\x{9FFF}\x{AC00}-\x{D7AF}\x{F900}-\x{FAFF}\x{FF00}-\x{FFEF}"


def _backend(vocabulary: dict[str, int], lowercase: bool) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    backend = Tokenizer(
        models.WordPiece(vocabulary, unk_token=SPECIAL_TOKENS["unk_token"], max_input_chars_per_word=100)
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.Sequence(
        [
            decoders.WordPiece("##", cleanup=False),
            decoders.Replace(Regex(f" (?=[{_CJK}])"), ""),
            decoders.Replace(Regex(r" (?=[,.!?;:%)\]}]$)"), ""),
        ]
    )
    return backend


def learn_vocabulary(texts: Iterable[str], num_tokens: int = 6000, *, lowercase: bool = True) -> list[str]:
    """A WordPiece vocabulary of at most ``num_tokens`` tokens learned from texts, special tokens first.

    Every character of the texts is in it whatever ``num_tokens``, as are letters and digits, alone and as ``##`` pieces.
    The same texts give the same vocabulary. Cost: seconds for a million words.
    """
    from tokenizers import trainers

    if num_tokens < 200:
        raise InputError(message(f"learn_vocabulary(num_tokens={num_tokens})", str(num_tokens), "at least 200"))
    alphabet = [c for c in _SPELLING if not lowercase or not c.isupper()]
    backend = _backend({SPECIAL_TOKENS["unk_token"]: 0}, lowercase)
    trainer = trainers.WordPieceTrainer(
        vocab_size=num_tokens,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=alphabet,
        show_progress=False,
        continuing_subword_prefix="##",
    )
    backend.train_from_iterator(texts, trainer)
    vocabulary = [token for token, _ in sorted(backend.get_vocab().items(), key=lambda pair: pair[1])]
    known = set(vocabulary)
    return vocabulary + [piece for char in alphabet if (piece := f"##{char}") not in known]


def read_vocabulary(path: str | Path) -> list[str]:
    """The tokens of a ``vocab.txt``, one a line; ``InputError`` for repeated tokens or missing special ones."""
    text = Path(path).read_text(encoding="utf-8")
    vocabulary = text.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n").split("\n")
    missing = [token for token in SPECIAL_TOKENS.values() if token not in vocabulary]
    if missing:
        raise InputError(
            message(f"{path}", f"no {', '.join(missing)}", "one token a line, the special ones among them")
        )
    if len(set(vocabulary)) != len(vocabulary):
        repeated = next(token for index, token in enumerate(vocabulary) if token in vocabulary[:index])
        raise InputError(message(f"{path}", f"{repeated!r} twice", "each token once"))
    return vocabulary


def make_tokenizer(
    vocabulary: Sequence[str] | str | Path, *, lowercase: bool = True, max_length: int = 8192
) -> PreTrainedTokenizerFast:
    """The tokenizer of a vocabulary (a list of tokens, or the path of a ``vocab.txt``).

    ``[CLS] text [SEP]`` and ``[CLS] text [SEP] pair [SEP]``; offsets refer to the original text.
    """
    from tokenizers import processors

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
