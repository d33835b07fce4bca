"""A smaller vocabulary: what a corpus uses and the special tokens stay, new words may come; weights of kept tokens untouched.

    old ids → kept, in their order → 0 … K−1,   then added words → K … ;   row of a word = mean of the rows of its old pieces

WordPiece and Unigram tokenizers cut the corpus as before, because every piece they chose is still there and no piece is new.
Added words are matched whole, before that. Saved model and tokenizer are plain transformers'.

Letters: V old size of the vocabulary, K tokens kept. Source: the "simplified vocabulary" of J. Su's bert4keras (kexue.fm 7148).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from tokenizers import Tokenizer
from transformers import AddedToken

from jieyue.errors import InputError
from jieyue.text import is_cjk

from .smaller_tables import Tables
from .tokenizers import with_backend

__all__ = ["prune_vocabulary"]

_MOST_SPARE_ROWS = 127  # tables are padded to a multiple of at most 128


def prune_vocabulary(
    model: Any,
    tokenizer: Any,
    texts: Iterable[str] | None = None,
    keep: Iterable[str] | None = None,
    add: Sequence[str] | None = None,
) -> tuple[Any, Any]:
    """(model, tokenizer) with fewer tokens: the model changed in place, the tokenizer a new one.

    ``texts``: their tokens stay; ``keep``: further tokens; special and added tokens always do. With neither every token stays.
    ``add``: words to become one token each. Heads tied to the embedding stay tied; logits over kept tokens are what they were.
    An optimizer made before does not fit. Cost: one pass over the texts; tables of K rows instead of V.

    Refuses: BPE and other kinds of tokenizers, a tokenizer that is not the model's, tokens to keep that are unknown, words to
    add that are there already or that the old vocabulary cannot spell, nothing to do, models whose tables are not understood
    (``smaller_tables``); all before anything is changed.
    """
    asked = "prune_vocabulary"
    if texts is None and keep is None and not add:
        raise InputError(asked, "no texts, keep or add", "at least one of them")
    _check_kind(tokenizer)
    table = model.get_input_embeddings()
    _check_pair(model, tokenizer, table.weight.shape[0])
    words = list(add or ())
    _check_words(words, tokenizer)
    kept = _kept(tokenizer, texts, keep)
    pieces = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    number = {old: new for new, old in enumerate(kept)}
    tables = Tables.of(model, kept, pieces)  # all that can be refused is, before anything changes
    made = with_backend(tokenizer, _smaller(tokenizer.backend_tokenizer, number))
    if words:
        made.add_tokens([_matched(word) for word in words])
    tables.apply()
    return model, made


def _kept(tokenizer: Any, texts: Iterable[str] | None, keep: Iterable[str] | None) -> list[int]:
    if texts is None and keep is None:
        return list(range(len(tokenizer)))
    always = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    vocabulary = tokenizer.get_vocab()
    always |= {number for token, number in vocabulary.items() if token.startswith("<0x") and token.endswith(">")}
    wanted = list(keep or ())
    if unknown := [token for token in wanted if token not in vocabulary]:
        raise InputError("prune_vocabulary(keep=...)", f"unknown {unknown[:6]}", "tokens of the tokenizer's vocabulary")
    found = always | {vocabulary[token] for token in wanted}
    remaining = iter(texts or ())
    while some := list(islice(remaining, 500)):
        for row in tokenizer(some, add_special_tokens=False)["input_ids"]:
            found.update(row)
    return sorted(found)


def _smaller(backend: Tokenizer, number: dict[int, int]) -> Tokenizer:
    """The tokenizer with the tokens of ``number`` alone (old id -> new id), its template and added tokens renumbered."""
    parts = json.loads(backend.to_str())
    model = parts["model"]
    if model["type"] == "WordPiece":
        model["vocab"] = {token: number[old] for token, old in model["vocab"].items() if old in number}
    else:
        model["vocab"] = [entry for old, entry in enumerate(model["vocab"]) if old in number]
        if model.get("unk_id") is not None:
            model["unk_id"] = number[model["unk_id"]]
    for token in parts["added_tokens"]:
        token["id"] = number[token["id"]]
    _renumber_template(parts.get("post_processor"), number)
    return Tokenizer.from_str(json.dumps(parts))


def _renumber_template(processor: Any, number: dict[int, int]) -> None:
    if not processor:
        return
    for inner in processor.get("processors", ()):
        _renumber_template(inner, number)
    for token in (processor.get("special_tokens") or {}).values():
        token["ids"] = [number[old] for old in token["ids"]]
    for name in ("sep", "cls"):
        if isinstance(processor.get(name), list):
            processor[name][1] = number[processor[name][1]]


def _matched(word: str) -> AddedToken:
    """Chinese words match anywhere, as they are; others only as whole words, in the tokenizer's normal form."""
    chinese = all(map(is_cjk, word))
    return AddedToken(word, single_word=not chinese, normalized=not chinese)


def _check_kind(tokenizer: Any) -> None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    kind = type(tokenizer).__name__ if backend is None else type(backend.model).__name__
    if kind not in ("WordPiece", "Unigram"):
        why = "its merges build tokens from tokens" if kind == "BPE" else ""
        raise InputError("prune_vocabulary", f"a {kind} tokenizer", "WordPiece or Unigram", why)


def _check_pair(model: Any, tokenizer: Any, rows: int) -> None:
    """The tokenizer must be the model's: as many tokens as rows, the same special ones."""
    wrong = []
    if not len(tokenizer) <= rows <= len(tokenizer) + _MOST_SPARE_ROWS:
        wrong.append(f"{len(tokenizer)} tokens and {rows} rows in the embedding")
    for name in ("pad", "mask", "sep", "cls"):
        own, theirs = getattr(model.config, f"{name}_token_id", None), getattr(tokenizer, f"{name}_token_id", None)
        if own is not None and theirs is not None and own != theirs:
            wrong.append(f"{name} is {theirs} for the tokenizer and {own} for the model")
    if wrong:
        raise InputError("prune_vocabulary", "; ".join(wrong), "the model's own tokenizer")


def _check_words(words: list[str], tokenizer: Any) -> None:
    vocabulary = tokenizer.get_vocab()
    wrong = [
        word
        for word in words
        if not word.strip() or word != word.strip() or words.count(word) > 1 or word in vocabulary
    ]
    if wrong:
        raise InputError("prune_vocabulary(add=...)", f"{wrong[:6]}", "new words, each once, without spaces around")
    unknown = tokenizer.unk_token_id
    lost = [w for w in words if not (ids := tokenizer(w, add_special_tokens=False)["input_ids"]) or unknown in ids]
    if lost:
        found = f"{lost[:6]}, which the old vocabulary cannot spell"
        raise InputError("prune_vocabulary(add=...)", found, "words whose pieces are known, to start from their mean")
