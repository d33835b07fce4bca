"""Writes nezha.safetensors: a tiny random NEZHA in the layout of transformers 4, and what transformers 4 computes with it.

Run once, with the last versions that had NEZHA:  pip install torch transformers==4.40.2;  python make_nezha.py
Tensors: ``weights/<name>`` (float32, the checkpoint); ``ids``, ``kept``, ``segments``; ``logits`` of NezhaForMaskedLM and
``causal`` of the same with ``is_decoder`` (both float64, computed in float64); ``hidden``: its last hidden state.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import NezhaConfig, NezhaForMaskedLM

SETTINGS = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "max_relative_position": 4,
}


def main() -> None:
    torch.manual_seed(7718)
    model = NezhaForMaskedLM(NezhaConfig(**SETTINGS)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    weights = {f"weights/{name}": value.clone() for name, value in model.state_dict().items() if "position" not in name}
    model = model.double()
    ids = torch.randint(4, 30, (2, 13))
    kept = torch.ones_like(ids)
    kept[1, 9:] = 0
    segments = (torch.arange(13) >= 6).long().expand(2, -1).contiguous()
    given = {"input_ids": ids, "attention_mask": kept, "token_type_ids": segments}
    with torch.no_grad():
        out = model(**given, output_hidden_states=True)
        causal = NezhaForMaskedLM(NezhaConfig(**SETTINGS, is_decoder=True)).double().eval()
        causal.load_state_dict(model.state_dict())
        computed = {"logits": out.logits, "hidden": out.hidden_states[-1], "causal": causal(**given).logits}
    tensors = {**weights, "ids": ids, "kept": kept, "segments": segments, **computed}
    path = Path(__file__).with_name("nezha.safetensors")
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, {"config": json.dumps(SETTINGS)})


if __name__ == "__main__":
    main()
