"""The middle way between shared and unshared layers: one frozen block for all, a low-rank correction for each layer.

    layer t computes with  W + (α/r)·B_t A_t,   A_t [r, in], B_t [out, r] trained, B_t = 0 at the start

so the outputs do not change at that moment, and r·(in + out) weights a matrix and layer are trained in place of in·out.
The adapters are peft's; ``merge_adapters`` makes of them an unshared ALBERT that plain transformers loads.

Source: Hu et al. 2021, "LoRA: low-rank adaptation of large language models" (arXiv 2106.09685).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from jieyue.errors import InputError, MissingExtra

from .albert import encoder_of, set_blocks

__all__ = ["TARGETS", "low_rank_adapters", "merge_adapters", "tie_layers"]

TARGETS = ("query", "key", "value", "dense", "ffn", "ffn_output")
_HEADS = ("classifier", "qa_outputs", "sop_classifier")


def low_rank_adapters(
    model: Any,
    rank: int = 8,
    *,
    alpha: int | None = None,
    dropout: float = 0.0,
    targets: Sequence[str] = TARGETS,
    also: Sequence[str] | None = None,
) -> Any:
    """A ``peft.PeftModel`` whose layers share one frozen block and have adapters of their own; outputs as before.

    ``rank``: r; ``alpha``: α (None = 2r); ``targets``: the block's matrices that get one; ``also``: modules trained whole (None = a
    classifier or span head, where there is one). ``save_pretrained`` keeps the adapters alone;
    ``PeftModel.from_pretrained(tie_layers(base), folder)`` reads them back.
    Refuses models without ALBERT's shared encoder, ranks below 1, targets the block lacks; ``MissingExtra`` without peft.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtra("peft", "adapters") from error
    block = encoder_of(model, "low_rank_adapters").albert_layer_groups[0]
    present = {name.rpartition(".")[2] for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    if unknown := [name for name in targets if name not in present] or ([] if targets else ["none"]):
        asked = f"low_rank_adapters(targets={tuple(targets)!r})"
        raise InputError(asked, ", ".join(unknown), f"some of {', '.join(sorted(present))}")
    if rank < 1:
        raise InputError(f"low_rank_adapters(rank={rank})", str(rank), "1 or more")
    heads = [name for name in _HEADS if hasattr(model, name)] if also is None else list(also)
    inside = rf".*albert_layer_groups\..*\.({'|'.join(targets)})"
    settings = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=inside,
        modules_to_save=heads or None,
    )
    adapted = get_peft_model(tie_layers(model), settings)
    for name in ("merge_and_unload", "merge_adapter"):  # would add every layer's correction to the one block
        vars(adapted.base_model)[name] = _refuse_merging
    return adapted


def tie_layers(model: Any) -> Any:
    """Every layer gets a module of its own, all with the very same weights, in place; what adapters hang on to.

    Not for saving: the configuration says L blocks and the weights are one block's, L times.
    """
    encoder = encoder_of(model, "tie_layers")
    layers, before = encoder.config.num_hidden_layers, list(encoder.albert_layer_groups)
    if len(before) == layers:
        raise InputError("tie_layers(model)", f"{layers} layers with blocks of their own", "layers that share")
    kept = {id(p): p for p in encoder.parameters()} | {id(encoder.config): encoder.config}
    set_blocks(model, [copy.deepcopy(block, dict(kept)) for block in before for _ in range(layers // len(before))])
    return model


def merge_adapters(adapted: Any) -> Any:
    """The ALBERT with unshared layers that computes the same: each layer's block plus its correction, no peft left."""
    encoder = encoder_of(adapted, "merge_adapters")
    if not hasattr(adapted, "peft_config"):
        raise InputError("merge_adapters(model)", type(adapted).__name__, "the model that low_rank_adapters returned")
    for block in encoder.albert_layer_groups:
        for module in block.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and "lora_" not in name:
                    module._parameters[name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
    for name in ("merge_and_unload", "merge_adapter"):
        vars(adapted.base_model).pop(name, None)
    merged = adapted.merge_and_unload()
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    return merged


def _refuse_merging(*_: Any, **__: Any) -> None:
    raise InputError(
        "merge_and_unload: found layers that share one block, into which every correction would be added; expected "
        "jieyue.hf.adapters.merge_adapters(model)"
    )
