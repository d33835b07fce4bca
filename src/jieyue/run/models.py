"""The model of a run: a preset that starts from scratch, or any masked language model that transformers loads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jieyue.data.readers import Question
from jieyue.hf.loading import load_config, load_model, load_tokenizer, model_from_config
from jieyue.hf.presets import PRESETS, build, preset_config
from jieyue.hf.tokenizers import learn_vocabulary, make_tokenizer

__all__ = ["ModelSource", "open_model", "texts_of"]


@dataclass(frozen=True)
class ModelSource:
    """``blueprint()`` makes the model without its trained weights (under fake tensors it costs nothing); ``build()`` makes it."""

    name: str
    is_preset: bool
    tokenizer: Any
    positions: int
    blueprint: Callable[[], Any]
    build: Callable[[], Any]


def texts_of(questions: Iterable[Question]) -> list[str]:
    """Every question and every distinct passage, in order: what a vocabulary is learned from."""
    texts: dict[str, None] = {}
    for question in questions:
        texts[question.text] = None
        texts.update(dict.fromkeys(passage.text for passage in question.passages))
    return list(texts)


def open_model(
    name: str,
    training: Iterable[Question],
    *,
    vocabulary: Path | None = None,
    start: str = "orthogonal-copy",
    seed: int = 0,
    new_head: bool = False,
) -> ModelSource:
    """A preset's name, a folder or a hub name. No weight is allocated before ``build()``.

    A preset's vocabulary is learned from the training texts, or read from ``vocabulary`` (a ``vocab.txt``).
    """
    if name in PRESETS and not Path(name).is_dir():
        own = make_tokenizer(learn_vocabulary(texts_of(training)) if vocabulary is None else vocabulary)
        fresh = preset_config(name, own)
        return ModelSource(
            name,
            True,
            own,
            fresh.max_position_embeddings,
            lambda: model_from_config(fresh),
            lambda: build(name, own, start=start, seed=seed),
        )
    tokenizer = load_tokenizer(name)
    config = load_config(name)
    positions = int(getattr(config, "max_position_embeddings", 0) or tokenizer.model_max_length)
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):  # their positions begin after the padding index
        positions -= int(config.pad_token_id or 0) + 1
    return ModelSource(
        name,
        False,
        tokenizer,
        min(positions, 1_000_000),
        lambda: model_from_config(config),
        lambda: load_model(name, new_head=new_head),
    )
