"""A masked language model that writes: bidirectional over the source, causal over the target, by segment (UniLM).

    query i sees key j   ⇔   j ≤ i,  or j lies in the source        segment 0 = source, 1 = target, the source first

``as_prefix_lm(model)`` gives BERT, RoBERTa, ELECTRA, EuroBERT and NEZHA masked LMs this mask, labels that are the next token,
and ``generate()`` with a cache. No matrix of N·N is formed: the keys at or before the query are one band, the source keys
after it are another, and the two partial results merge exactly. Under any other attention (``set_attn_implementation("eager")``)
an additive mask is made, [B, 1, N, N] floats. Weights and folders stay those of the masked LM: plain ``AutoModelForMaskedLM``
loads them, ``jieyue.load(folder, "prefix")`` brings the mask back.

Letters: B rows, N new tokens, M tokens seen so far (M = N without a cache), H heads, D head size, V vocabulary.
Source: Dong et al. 2019, "Unified language model pre-training" (arXiv 1905.03197).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import GENERATION_CONFIG_NAME

from jieyue.attention import attend
from jieyue.attention.partial import Partial
from jieyue.errors import InputError

from .nezha import NezhaForMaskedLM

__all__ = ["FIELD", "NAME", "PrefixLM", "additive_mask", "as_prefix_lm", "is_prefix_lm"]

FIELD = "jieyue_prefix"  # the key of config.json that `load` reads back
NAME = "jieyue:prefix"  # our attention's name in transformers' table
IGNORED = -100  # labels of this value are not counted


class PrefixLM(GenerationMixin):
    """What a masked LM's class becomes: the same weights and folder, the mask and ``generate()`` of a prefix LM."""

    config: Any
    training: bool

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, N, V] of the next token at each position.

        ``token_type_ids`` [B, N]: segments, 0 = source, 1 = target; none given: all source (so the masked LM that it was), or all
        target behind a cache. ``attention_mask`` [B, M], 1 = keep; ``labels`` [B, N]: the tokens themselves, -100 where not
        asked; position i is held to label i + 1, mean over the labels. Behind a cache only targets may follow.
        """
        if input_ids is None:
            raise InputError("PrefixLM: found no input_ids, expected [B, N] tokens")
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        segments = _segments(input_ids, token_type_ids, seen)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            position_ids = _positions(input_ids, attention_mask, seen)
        source = (segments.cumsum(1) == 0) if seen == 0 else None
        inputs = _inputs(self.config, input_ids, segments, position_ids)
        inputs |= _masks(self, input_ids, attention_mask, source, seen)
        output: Any = super().forward(**inputs, past_key_values=past_key_values, **kwargs)  # type: ignore[misc]
        return CausalLMOutputWithPast(
            loss=None if labels is None else _loss(output.logits, labels),
            logits=output.logits,
            past_key_values=past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    @classmethod
    def can_generate(cls) -> bool:
        return True

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """The folder of the masked LM, with generation_config.json besides."""
        own = type(self)
        self.__class__ = own.__bases__[1]  # so that config.json names the class that loads it
        try:
            self.save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.__class__ = own
        self.generation_config.save_pretrained(save_directory)

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """transformers' ``generate``; the prompt is source where no ``token_type_ids`` say otherwise, what is written is target."""
        prompt = kwargs.get("input_ids") if inputs is None else inputs
        segments = kwargs.pop("token_type_ids", None)  # under this name transformers would repeat the last one
        if prompt is not None:
            kwargs["prompt_segments"] = torch.zeros_like(prompt) if segments is None else segments
        return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        prompt_segments: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The tokens that the cache has not seen, their segments, and the padding of all."""
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        segments = torch.ones_like(input_ids)
        if prompt_segments is not None:
            segments[:, : prompt_segments.shape[1]] = prompt_segments
        return {
            "input_ids": input_ids[:, seen:],
            "token_type_ids": segments[:, seen:],
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "use_cache": kwargs.get("use_cache"),
        }


@cache
def _classes() -> tuple[type[PrefixLM], ...]:
    """A class for each family; made when the first model asks, because each family's module takes its time to be imported."""

    class PrefixBert(PrefixLM, transformers.BertForMaskedLM):  # type: ignore[misc]
        """BERT as a prefix LM."""

    class PrefixRoberta(PrefixLM, transformers.RobertaForMaskedLM):  # type: ignore[misc]
        """RoBERTa as a prefix LM; it has no segment embedding, so segments say only who sees whom."""

    class PrefixElectra(PrefixLM, transformers.ElectraForMaskedLM):  # type: ignore[misc]
        """ELECTRA's generator as a prefix LM."""

    class PrefixEuroBert(PrefixLM, transformers.EuroBertForMaskedLM):  # type: ignore[misc]
        """EuroBERT (our presets) as a prefix LM; rotary positions, no segment embedding."""

    class PrefixNezha(PrefixLM, NezhaForMaskedLM):  # type: ignore[misc]
        """NEZHA as a prefix LM; its own attention knows the prefix."""

    return PrefixBert, PrefixRoberta, PrefixElectra, PrefixEuroBert, PrefixNezha


def as_prefix_lm(model: Any, tokenizer: Any = None) -> Any:
    """The masked LM as a prefix LM, in place: its class, its attention and its configuration change, no weight does.

    ``tokenizer``: its [CLS], [SEP] and padding become the first, last and padding token of ``generate()``.
    Refuses every class but the masked LMs of BERT, RoBERTa, ELECTRA, EuroBERT and NEZHA, by name.
    """
    if not is_prefix_lm(model):
        chosen = next((one for one in _classes() if one.__bases__[1] is type(model)), None)
        if chosen is None:
            known = ", ".join(one.__bases__[1].__name__ for one in _classes())
            raise InputError("as_prefix_lm(model)", type(model).__name__, f"one of {known}")
        model.__class__ = chosen
        setattr(model.config, FIELD, True)
        if not issubclass(chosen, NezhaForMaskedLM):
            register_prefix()
            model.set_attn_implementation(NAME)
        model.generation_config = _generation_config(model)
    if tokenizer is not None:
        model.generation_config.bos_token_id = tokenizer.cls_token_id
        model.generation_config.eos_token_id = tokenizer.sep_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def _generation_config(model: Any) -> GenerationConfig:
    """The one that the model's folder has, else one from its configuration."""
    folder = Path(vars(model).get("name_or_path") or "")
    if (folder / GENERATION_CONFIG_NAME).is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_model_config(model.config)


def is_prefix_lm(model: Any) -> bool:
    """Whether this model, or what a wrapper holds, is one."""
    return isinstance(model, PrefixLM)


def register_prefix() -> None:
    """Makes transformers know our attention's name, once."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, prefix_attention)
    AttentionMaskInterface.register(NAME, _padding)


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    prefix_source: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [B,H,N,D], key and value [B,G,M,D], attention_mask and prefix_source bool [B,M] -> ([B,N,H,D], None).

    With neither source nor ``is_causal`` every query sees every key that is kept.
    """
    if kwargs.get("output_attentions"):
        raise InputError(
            "output_attentions=True: no attention matrix is formed; expected set_attn_implementation('eager')"
        )
    settings: dict[str, Any] = {"scale": scaling, "dropout": dropout, "q_offset": key.shape[2] - query.shape[2]}
    everything = prefix_source is None and not kwargs.get("is_causal")
    out: Any = attend(
        query,
        key,
        value,
        "full()" if everything else "causal(full())",
        key_mask=attention_mask,
        return_lse=True,
        **settings,
    )
    if prefix_source is not None and query.shape[2] > 1:
        shown = prefix_source if attention_mask is None else prefix_source & attention_mask
        ahead: Any = attend(query, key, value, "band(1, -inf, -1)", key_mask=shown, return_lse=True, **settings)
        out = (Partial(*out).merge(Partial(*ahead)).out,)
    return out[0].transpose(1, 2).contiguous(), None


def additive_mask(source: Tensor | None, kept: Tensor | None, num_new: int, num_seen: int, like: Tensor) -> Tensor:
    """0 where a query may look and the lowest number elsewhere, [B or 1, 1, N, M]; right under eager and SDPA alike.

    ``source`` and ``kept`` bool [B, M] or None (no source: causal). A boolean mask would be added as 0 and 1 by eager attention.
    """
    i = torch.arange(num_seen - num_new, num_seen, device=like.device)[:, None]
    j = torch.arange(num_seen, device=like.device)
    shown = (j <= i)[None]
    if source is not None:
        shown = shown | source[:, None, :]
    if kept is not None:
        shown = shown & kept[:, None, :]
    return like.new_zeros(shown.shape).masked_fill_(~shown, torch.finfo(like.dtype).min)[:, None]


def _segments(input_ids: Tensor, token_type_ids: Tensor | None, seen: int) -> Tensor:
    if token_type_ids is None:
        return torch.full_like(input_ids, int(seen > 0))
    if token_type_ids.shape != input_ids.shape:
        found = f"token_type_ids of shape {list(token_type_ids.shape)}"
        raise InputError("PrefixLM", found, f"{list(input_ids.shape)}, one segment for each new token")
    if seen and not torch.compiler.is_compiling() and bool((token_type_ids == 0).any()):
        raise InputError(
            "PrefixLM", "source tokens (segment 0) behind a cache", "targets (segment 1)", "give the source in one call"
        )
    return token_type_ids


def _positions(input_ids: Tensor, attention_mask: Tensor | None, seen: int) -> Tensor:
    """Positions counted without padding, from 0; a cache's tokens come before."""
    if attention_mask is None:
        return torch.arange(seen, seen + input_ids.shape[1], device=input_ids.device)[None]
    return (attention_mask.long().cumsum(1) - 1).clamp_min(0)[:, seen:]


def _inputs(config: Any, input_ids: Tensor, segments: Tensor, position_ids: Tensor) -> dict[str, Any]:
    """What the family's masked LM is called with: it may have no segment embedding, no positions, or begin them elsewhere."""
    family = config.model_type
    inputs: dict[str, Any] = {"input_ids": input_ids}
    if family in ("bert", "electra", "nezha") and config.type_vocab_size > 1:
        inputs["token_type_ids"] = segments
    if family != "nezha":
        inputs["position_ids"] = position_ids + (config.pad_token_id + 1 if family == "roberta" else 0)
    return inputs


def _masks(
    model: Any, input_ids: Tensor, attention_mask: Tensor | None, source: Tensor | None, seen: int
) -> dict[str, Any]:
    """The mask in the form that the model's attention takes: ours, or an additive one."""
    num_new = input_ids.shape[1]
    if attention_mask is not None and attention_mask.shape != (input_ids.shape[0], seen + num_new):
        found = f"attention_mask of shape {list(attention_mask.shape)}"
        raise InputError("PrefixLM", found, f"{[input_ids.shape[0], seen + num_new]}, one for each token seen")
    kept = None if attention_mask is None else attention_mask.bool()
    if model.config._attn_implementation == NAME or model.config.model_type == "nezha":
        return {"attention_mask": kept, "prefix_source": source, "is_causal": source is None}
    if model.config._attn_implementation not in ("eager", "sdpa"):
        found = f"the attention {model.config._attn_implementation!r}"
        raise InputError("PrefixLM", found, f"{NAME!r}, 'sdpa' or 'eager'", f"set_attn_implementation({NAME!r})")
    return {"attention_mask": additive_mask(source, kept, num_new, seen + num_new, model.get_input_embeddings().weight)}


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED
    )


def _padding(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> Tensor | None:
    """In the place of transformers' mask factory: padding stays [B, M]."""
    return attention_mask
