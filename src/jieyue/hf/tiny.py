"""The smallest models of every type that transformers knows, with fresh weights: what the families page is measured on.

``tiny_model("bert")`` fills in small sizes for the settings that a configuration class has, builds the first class that can be
built from it, and draws weights large enough that attention matters. Nothing is downloaded.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from jieyue.errors import InputError

__all__ = ["CLASSES", "model_types", "tiny_config", "tiny_inputs", "tiny_model"]

CLASSES = ("AutoModelForSeq2SeqLM", "AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModel")
LARGEST = 30_000_000  # parameters; a type that stays larger is not built

_WIDTH, _HEADS, _LAYERS, _FEED, _WORDS, _LENGTH = 32, 4, 2, 48, 99, 160
_SIZES: dict[str, int | float] = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "embed_dim", "embedding_size", "dim", "emb_dim", "hidden_dim", "text_embed_dim"), _WIDTH
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "num_encoder_layers", "encoder_layers",
         "decoder_layers", "num_block_layers"), _LAYERS,
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
         "attention_heads", "mamba_n_heads", "mamba_num_heads"), _HEADS,
    ),
    **dict.fromkeys(("num_key_value_heads", "n_mamba_heads", "mamba_expand", "type_vocab_size", "linear_num_key_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "v_head_dim", "mamba_d_state", "ssm_state_size", "state_size", "mamba_head_dim",
                     "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(
        ("intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner", "ffn_hidden_size", "mlp_dim"), _FEED
    ),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "max_source_positions",
         "max_target_positions"), _LENGTH,
    ),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "linear_num_value_heads"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank", "chunk_size",
                     "image_size", "num_mel_bins", "mamba_d_head", "mamba_headdim"), 16),
    **dict.fromkeys(("rotary_dim", "qk_rope_head_dim", "qk_nope_head_dim", "patch_size"), 4),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "mamba_n_groups"), 1),
    "num_experts_per_tok": 2, "vocab_size": _WORDS, "num_channels": 3,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    **dict.fromkeys(
        ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "hidden_dropout_prob", "dropout", "resid_pdrop",
         "embd_pdrop", "activation_dropout", "hidden_dropout", "dropout_rate", "resid_dropout", "embed_dropout"), 0.0,
    ),
}  # fmt: skip

# types whose small sizes must fit together in a way of their own
_SHARING = {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": 6, "vocab_size_per_layer_input": _WORDS, "hidden_size_per_layer_input": 8}  # fmt: skip
_OWN: Mapping[str, Mapping[str, object]] = {
    "gemma3n_text": _SHARING
    | {"intermediate_size": [_FEED] * 4, "activation_sparsity_pattern": [0.0] * 4, "laurel_rank": 4},
    "gemma4_text": _SHARING | {"global_head_dim": 8},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64},
    "gemma2": {"final_logit_softcapping": None},  # capped logits of drawn weights are equal to the last bit
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "nemotron_h": {"layer_types": ["linear_attention", "full_attention"], "n_groups": 1},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "num_mem_blocks": 1},
}


def model_types() -> list[str]:
    """Every model type of the installed transformers, in order."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return sorted(CONFIG_MAPPING_NAMES)


def tiny_config(model_type: str, **more: object) -> PretrainedConfig:
    """A small configuration of this type, with ``more`` settings (None: the class's own); ``InputError`` where none can be made."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        kind: type[PretrainedConfig] = CONFIG_MAPPING[model_type]
        config = _small(kind, more)
        if config.is_encoder_decoder and model_type == "encoder-decoder":
            config.decoder.is_decoder = config.decoder.add_cross_attention = True
        return config
    except Exception as error:
        raise InputError(f"{model_type}: no small configuration could be made: {_line(error)}") from error


def tiny_model(config: PretrainedConfig) -> PreTrainedModel:
    """A float64 model in ``eval`` mode of the first of ``CLASSES`` that this configuration builds, else of a class of its own.

    ``InputError`` for none, or where the smallest has more than 30 million parameters.
    """
    errors: list[str] = []
    for build in (*(getattr(transformers, name).from_config for name in CLASSES), *_classes_of(config)):
        try:
            torch.manual_seed(0)
            model: PreTrainedModel = build(config)
        except Exception as error:
            errors.append(_line(error))
            continue
        size = sum(p.numel() for p in model.parameters())
        if size > LARGEST:
            raise InputError(
                f"{config.model_type}: has {size:,} parameters in its smallest form, expected at most {LARGEST:,}"
            )
        return _drawn(model.double().eval())
    raise InputError(f"{config.model_type}: no class can be built: {errors[-1]}")


def tiny_inputs(model: PreTrainedModel, length: int = 37, hidden: int = 9) -> Iterator[dict[str, Tensor]]:
    """Calls that might suit the model, two rows each: ids with ``hidden`` places of padding, images, both, sounds."""
    takes = inspect.signature(type(model).forward).parameters
    try:
        words = getattr(model.config.get_text_config(), "vocab_size", _WORDS) or _WORDS
    except ValueError:  # several texts (MusicGen)
        words = _WORDS
    ids = torch.randint(3, min(words, 90), (2, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, length - hidden :] = 0
    text = {"input_ids": ids.where(mask.bool(), torch.tensor(0)), "attention_mask": mask}
    targets = {"decoder_input_ids": ids[:, : length // 2]} if model.config.is_encoder_decoder else {}
    candidates: list[dict[str, Tensor]] = []
    if "input_ids" in takes:
        candidates.append(text | targets)
    for shape in _picture_shapes(model.config):
        candidates += [{"pixel_values": _noise(shape)} | targets]
        if "input_ids" in takes:
            candidates.append(text | {"pixel_values": _noise(shape)})
    bins = getattr(model.config, "num_mel_bins", 80)
    places = getattr(model.config, "max_source_positions", 40)
    candidates += [
        {"input_features": _noise(shape)} | targets for shape in ((2, bins, 2 * places), (2, 40, bins), (2, bins, 40))
    ]
    candidates.append({"input_values": _noise((2, 6400))} | targets)
    for found in candidates:
        if set(found) - {"attention_mask"} <= set(takes):
            yield {name: x for name, x in found.items() if name in takes}


def _noise(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _picture_shapes(config: PretrainedConfig) -> Iterator[tuple[int, ...]]:
    for one in (config, getattr(config, "vision_config", None)):
        size = getattr(one, "image_size", None)
        sides = (size, size) if isinstance(size, int) else tuple(size or ())
        if len(sides) == 2:
            yield (2, getattr(one, "num_channels", 3), *sides)


def _classes_of(config: PretrainedConfig) -> Iterator[type[PreTrainedModel]]:
    """The classes beside a configuration's own that are made for it and no more abstract than needed."""
    home = type(config).__module__.replace(".configuration_", ".modeling_")
    try:
        found = vars(importlib.import_module(home)).values()
    except ImportError:
        return
    for one in found:
        if not isinstance(one, type) or not issubclass(one, PreTrainedModel) or one.__module__ != home:
            continue
        if one.config_class is type(config) and not one.__name__.endswith("PreTrainedModel"):
            yield one


def _small(kind: type[PretrainedConfig], more: Mapping[str, object]) -> PretrainedConfig:
    names = set(inspect.signature(kind.__init__).parameters) | {
        key for one in kind.__mro__ for key in vars(one).get("__annotations__", {})
    }
    renamed = kind.attribute_map
    settings: dict[str, object] = {key: size for key, size in _SIZES.items() if key in names and key not in renamed}
    if "kv_lora_rank" in names:  # latent attention gives every head its own keys
        settings["num_key_value_heads"] = _HEADS
    settings |= dict(_inner(kind, more))
    settings |= _OWN.get(kind.model_type, {})
    settings |= {key: value for key, value in more.items() if key in names}
    settings = {
        key: value for key, value in settings.items() if value is not None or key in _OWN.get(kind.model_type, {})
    }
    build: Callable[..., PretrainedConfig] = kind
    for _ in range(6):  # a setting that the class complains of by name is left to the class
        try:
            return _alone(build(**settings))
        except Exception as error:
            refused = [key for key in settings if key in _SIZES and key in str(error)]
            if not refused:
                raise
            for key in refused:
                del settings[key]
    return _alone(build(**settings))


def _alone(config: PretrainedConfig) -> PretrainedConfig:
    """With experts computed one by one: grouped products know no float64."""
    config._experts_implementation = "eager"
    return config


def _inner(kind: type[PretrainedConfig], more: Mapping[str, object]) -> Iterator[tuple[str, PretrainedConfig]]:
    """The configurations inside, small as well."""
    for key, inner in kind.sub_configs.items():
        try:
            if inner is transformers.AutoConfig:
                inner = type(getattr(kind(), key))
            if issubclass(inner, PretrainedConfig):
                yield key, _small(inner, more)
        except Exception:
            continue


@torch.no_grad()
def _drawn(model: PreTrainedModel) -> PreTrainedModel:
    for name, p in model.named_parameters():
        if p.dim() >= 2:
            p.normal_(0, 0.15)
        elif "bias" in name or not p.isfinite().all():
            p.normal_(0, 0.1)
    return model


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
