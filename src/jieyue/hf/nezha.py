"""NEZHA, which transformers 5 no longer has: BERT with relative positions, no limit of length; masked and causal LM.

Layout and names of weights are those of transformers 4, so its checkpoints load. ``import jieyue.hf`` registers the model
with ``AutoConfig``, ``AutoModel``, ``AutoModelForMaskedLM`` and ``AutoModelForCausalLM``.

Segments of a dialogue, [CLS] u₁ [SEP] u₂ [SEP] u₃ …, are (number of [SEP] before) mod 2. The model computes them itself whenever
none are given, behind a cache too (``NezhaCache`` remembers), so training, ``generate()`` and a server cannot differ.
Attention is ``relative.attend_relative``; ``jieyue.use`` refuses it, because the positions enter the values.

Letters: B rows, N new tokens, M tokens seen so far, H heads, D head size, V vocabulary.
Source: Wei et al. 2019 (arXiv 1909.00204); J. Su, nezha_gpt_dialog (kexue.fm 7718) for the segments of dialogues.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertTokenizer,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithPast,
    MaskedLMOutput,
)
from transformers.models.bert.modeling_bert import (
    BertEncoder,
    BertLayer,
    BertLMPredictionHead,
    BertOnlyMLMHead,
    BertPooler,
)
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from jieyue.errors import InputError

from .relative import attend_relative, position_table
from .segments import NezhaCache, ends_of, segments_of

__all__ = [
    "NezhaConfig",
    "NezhaForCausalLM",
    "NezhaForMaskedLM",
    "NezhaModel",
    "register_nezha",
]


class NezhaConfig(PreTrainedConfig):
    """transformers 4's settings and ``sep_token_id``, by which segments are counted (102 in the Chinese vocabulary of BERT).

    ``max_position_embeddings`` is kept for the layout; positions are relative, clipped at ``max_relative_position``, without limit.
    """

    model_type = "nezha"

    vocab_size: int = 21128
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    max_relative_position: int = 64
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    classifier_dropout: float | int | None = 0.1
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 3
    sep_token_id: int | None = 102
    use_cache: bool = True
    is_decoder: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True


class NezhaEmbeddings(nn.Module):
    """Words and segments; positions come in attention."""

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, words: Tensor, segments: Tensor) -> Tensor:
        embedded: Tensor = self.dropout(self.LayerNorm(words + self.token_type_embeddings(segments)))
        return embedded


class NezhaSelfAttention(nn.Module):
    """Queries, keys and values of a layer through ``attend_relative``; the cache holds keys and values without positions."""

    def __init__(self, config: NezhaConfig, layer_idx: int) -> None:
        super().__init__()
        self.head_size = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.distance = config.max_relative_position
        self.layer_idx = layer_idx

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        prefix_source: Tensor | None = None,
        is_causal: bool = False,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """hidden_states [B, N, H·D], attention_mask and prefix_source bool [B, M] -> [B, N, H·D]."""
        shape = (*hidden_states.shape[:2], -1, self.head_size)
        q, k, v = (part(hidden_states).view(shape).transpose(1, 2) for part in (self.query, self.key, self.value))
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        out = attend_relative(
            q,
            k,
            v,
            position_table(self.distance, self.head_size, q),
            causal=is_causal or prefix_source is not None,
            source=prefix_source,
            key_mask=attention_mask,
            dropout=self.dropout.p if self.training else 0.0,
        )
        return out.transpose(1, 2).flatten(2), None


class NezhaPreTrainedModel(PreTrainedModel):
    """What NEZHA's classes have in common."""

    config_class = NezhaConfig
    base_model_prefix = "nezha"
    supports_gradient_checkpointing = True
    _can_record_outputs = {"hidden_states": BertLayer}  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = ["positions_encoding", "position_ids", "token_type_ids"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BertLMPredictionHead):
            init.zeros_(module.bias)


class NezhaModel(NezhaPreTrainedModel):
    """The encoder: hidden states [B, N, hidden], the first token's pooled. ``is_causal``: each token sees none after it."""

    def __init__(self, config: NezhaConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = NezhaEmbeddings(config)
        self.encoder = BertEncoder(config)
        for index, layer in enumerate(self.encoder.layer):
            layer.set_submodule("attention.self", NezhaSelfAttention(config, index))
        self.pooler = BertPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.embeddings.word_embeddings = value

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """``attention_mask`` [B, M], 1 = keep; ``token_type_ids`` [B, N]: computed where none are given; ``position_ids``: refused."""
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("NezhaModel: expected either input_ids [B, N] or inputs_embeds [B, N, hidden]")
        if kwargs.pop("position_ids", None) is not None:
            raise InputError("NezhaModel: found position_ids, expected none: positions are relative")
        causal = kwargs.pop("is_causal", None) or self.config.is_decoder
        if use_cache and causal and past_key_values is None:
            past_key_values = NezhaCache(config=self.config)
        words = self.embeddings.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        kept = _kept(attention_mask, words, past_key_values)
        segments = self._segments(input_ids, token_type_ids, kept, past_key_values)
        output = self.encoder(
            self.embeddings(words, segments),
            attention_mask=kept,
            past_key_values=past_key_values,
            is_causal=causal,
            **kwargs,
        ).last_hidden_state
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=output,
            pooler_output=None if self.pooler is None else self.pooler(output),
            past_key_values=past_key_values,
        )

    def _segments(self, input_ids: Tensor | None, given: Tensor | None, kept: Tensor | None, past: Any) -> Tensor:
        sep, seen = self.config.sep_token_id, 0 if past is None else past.get_seq_length()
        remembers = isinstance(past, NezhaCache) and (seen == 0 or past.following is not None)
        if given is None:
            if input_ids is None:
                raise InputError("NezhaModel: found inputs_embeds without token_type_ids, expected both, or input_ids")
            if sep is None or not 0 <= sep < self.config.vocab_size:
                found = f"sep_token_id={sep} and no token_type_ids"
                do = "set config.sep_token_id to the tokenizer's, or give token_type_ids"
                raise InputError("NezhaModel", found, f"a token below {self.config.vocab_size}", do)
            if seen and not remembers:
                found = f"a {type(past).__name__} that does not know the segments of the {seen} tokens in it"
                raise InputError("NezhaModel", found, "a NezhaCache (one is made), or token_type_ids")
            first = past.following[:, -1] if seen else None
            given = segments_of(input_ids, sep, kept=None if kept is None else kept[:, seen:], first=first)
        if remembers and input_ids is not None and sep is not None:
            past.remember((given + ends_of(input_ids, sep, None if kept is None else kept[:, seen:])) % 2)
        return given


class NezhaForMaskedLM(NezhaPreTrainedModel):
    """Logits [B, N, V] of the token at each position."""

    _tied_weights_keys = {  # noqa: RUF012
        "cls.predictions.decoder.weight": "nezha.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config)
        self.nezha = NezhaModel(config, add_pooling_layer=False)
        self.cls = BertOnlyMLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """``labels`` [B, N]: the tokens to be found, -100 where not asked; their mean loss."""
        out = self.nezha(input_ids, attention_mask, token_type_ids, inputs_embeds, **kwargs)
        logits = self.cls(out.last_hidden_state)
        loss = None if labels is None else nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


class NezhaForCausalLM(NezhaPreTrainedModel, GenerationMixin):
    """Logits [B, N, V] of the next token; each token sees those before it. The weights of the masked LM are its own."""

    _tied_weights_keys = NezhaForMaskedLM._tied_weights_keys

    def __init__(self, config: NezhaConfig) -> None:
        super().__init__(config)
        self.nezha = NezhaModel(config, add_pooling_layer=False)
        self.cls = BertOnlyMLMHead(config)
        self.post_init()

    get_output_embeddings = NezhaForMaskedLM.get_output_embeddings
    set_output_embeddings = NezhaForMaskedLM.set_output_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """``labels`` [B, N]: the tokens themselves, -100 where not asked; ``logits_to_keep``: of the last so many, 0 = all."""
        out = self.nezha(
            input_ids,
            attention_mask,
            token_type_ids,
            inputs_embeds,
            past_key_values,
            use_cache=bool(use_cache),
            is_causal=True,
            **kwargs,
        )
        logits = self.cls(out.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=out.past_key_values, hidden_states=out.hidden_states
        )

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """transformers' ``generate``; segments that a tokenizer added must be those that the model counts."""
        prompt = kwargs.get("input_ids") if inputs is None else inputs
        given = kwargs.pop("token_type_ids", None)
        if given is not None and prompt is not None:
            counted = segments_of(prompt, self.config.sep_token_id)
            kept = kwargs.get("attention_mask")
            if bool(((given != counted) & (torch.ones_like(counted) if kept is None else kept).bool()).any()):
                raise InputError(
                    "generate(token_type_ids=...): found other segments than (number of [SEP] before) mod 2, which the model counts "
                    "while it writes; expected none"
                )
        return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, past_key_values: Any = None, attention_mask: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The tokens that the cache has not seen; their segments are the model's own affair."""
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        return {
            "input_ids": input_ids[:, seen:],
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "use_cache": kwargs.get("use_cache"),
            "logits_to_keep": kwargs.get("logits_to_keep", 0),
        }

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **more: Any
    ) -> Any:
        made = super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **more)  # type: ignore[misc]
        if type(model_kwargs.get("past_key_values")) is DynamicCache:
            model_kwargs["past_key_values"] = NezhaCache(config=self.config)
        return made


def register_nezha() -> None:
    """Tells transformers' Auto classes, once."""
    AutoConfig.register("nezha", NezhaConfig, exist_ok=True)
    AutoModel.register(NezhaConfig, NezhaModel, exist_ok=True)
    AutoModelForMaskedLM.register(NezhaConfig, NezhaForMaskedLM, exist_ok=True)
    AutoModelForCausalLM.register(NezhaConfig, NezhaForCausalLM, exist_ok=True)
    AutoTokenizer.register(NezhaConfig, fast_tokenizer_class=BertTokenizer, exist_ok=True)


def _kept(attention_mask: Tensor | None, words: Tensor, past: Any) -> Tensor | None:
    if attention_mask is None:
        return None
    expected = [words.shape[0], words.shape[1] + (0 if past is None else past.get_seq_length())]
    if list(attention_mask.shape) != expected:
        found = f"attention_mask of shape {list(attention_mask.shape)}"
        raise InputError("NezhaModel", found, f"{expected}, 1 = keep, one for each token seen")
    return attention_mask.bool()
