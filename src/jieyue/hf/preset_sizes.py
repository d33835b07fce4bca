"""The sizes of the presets: models that start from random weights, by name."""

from __future__ import annotations

__all__ = ["CAUSAL_PRESETS", "CLASSIC_PRESETS", "PRESETS"]

PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192},
    "small": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 512},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048},
}
_TINY = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 384}
_SMALL = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 1024}
CLASSIC_PRESETS: dict[str, dict[str, int]] = {
    "albert-tiny": _TINY,
    "albert-small": _SMALL,
    "bert-tiny": _TINY,
    "bert-small": _SMALL,
}
CAUSAL_PRESETS: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "intermediate_size": 512,
    },
    "small": {
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 1408,
    },
}
