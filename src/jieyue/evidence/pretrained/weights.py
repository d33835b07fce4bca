"""A pretrained model's folder: what kind of model it holds, told from its configuration and known by its content."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from jieyue.errors import InputError, near_file
from jieyue.hf.finite import check_finite, stored_weights
from jieyue.hf.loading import check_own_attention, head_of, load_config, load_tokenizer, model_from_config
from jieyue.json_values import Facts
from jieyue.run.cells import content_of

if TYPE_CHECKING:
    from jieyue.hf.types import Config

__all__ = ["DECODER", "ENCODER", "Weights", "open_weights"]

ENCODER, DECODER = "encoder", "decoder"
_KIND_OF_HEAD = {
    None: ENCODER,
    "masked-lm": ENCODER,
    "classification": ENCODER,
    "token-classification": ENCODER,
    "span": ENCODER,
    "causal-lm": DECODER,
}


@dataclass(frozen=True)
class Weights:
    """``facts``: JSON values that stand in every cell: ``name`` (the folder's), ``type`` (transformers' own word), ``kind``
    ("encoder" or "decoder"), ``layers``, ``hidden``, ``heads``, ``vocabulary``, ``positions``, ``activation``, ``parameters``,
    ``content`` (a digest of the weights' and the tokenizer's files). ``folder``: where it is; None for cells read from a file."""

    facts: Facts
    folder: Path | None = None

    @property
    def name(self) -> str:
        return str(self.facts["name"])

    @property
    def kind(self) -> str:
        return str(self.facts["kind"])


def open_weights(folders: Sequence[Path]) -> list[Weights]:
    """What these folders hold, in their order; no model is loaded, its bytes are read for the digest, each weight once by itself.

    ``InputError``: a folder that is not there or holds no model of transformers, no safetensors or no tokenizer; weights that are
    no finite numbers; a model that both reads and writes, or whose attention is one of ours; two folders of one name,
    or of the same content.
    """
    found: list[Weights] = []
    for folder in folders:
        one = _opened(folder)
        for other in found:
            if other.name == one.name or other.facts["content"] == one.facts["content"]:
                same = "of the same name" if other.name == one.name else "with the same content"
                do = "give each model once, and a name of its own to each folder"
                raise InputError("--weights", f"{other.folder} and {folder}, {same}", "different models", do)
        found.append(one)
    return found


def _opened(folder: Path) -> Weights:
    if not folder.is_dir():
        found = f"the file {folder}" if folder.exists() else f"no folder {folder}{near_file(folder)}"
        raise InputError("--weights", found, "the folder of a model of transformers")
    config = load_config(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError("--weights", f"no weights in {folder}", "model.safetensors beside config.json")
    if getattr(config, "is_encoder_decoder", False) or head_of(folder) not in _KIND_OF_HEAD:
        asked = (getattr(config, "architectures", None) or [config.model_type])[0]
        expected = "an encoder such as BERT, or a decoder such as Llama"
        raise InputError("--weights", f"{asked} in {folder}", expected)
    if getattr(config, "vocab_size", None) is None:
        raise InputError("--weights", f"{config.model_type} in {folder}, which reads no tokens", "a model of text")
    check_own_attention(folder, "--weights")  # claims hold other attentions against the model's own
    check_finite(stored_weights(files), f"--weights {folder}")
    kind, tokenizer = _KIND_OF_HEAD[head_of(folder)], load_tokenizer(folder)
    files += [path for name in ("tokenizer.json", "vocab.txt") if (path := folder / name).is_file()]
    facts: Facts = {
        "name": re.sub(r"[^\w.-]+", "-", folder.absolute().name),
        "type": str(config.model_type),
        "kind": kind,
        **{name: getattr(config, own, None) for name, own in _SIZES.items()},
        "vocabulary": len(tokenizer),
        "activation": _activation(config),
        "parameters": _parameters(config, kind),
        "content": content_of(files),
    }
    return Weights(facts, folder)


_SIZES = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "positions": "max_position_embeddings",
}


def _activation(config: Config) -> str | None:
    names = ("hidden_act", "activation_function", "hidden_activation")
    return next((str(found) for name in names if (found := getattr(config, name, None)) is not None), None)


def _parameters(config: Config, kind: str) -> int:
    with torch.device("meta"):
        model = model_from_config(config, "causal-lm" if kind == DECODER else None)
    return sum(parameter.numel() for parameter in model.parameters())
