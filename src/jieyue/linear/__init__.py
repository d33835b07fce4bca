"""Linear attention: feature maps, bidirectional and causal, forward, backward and decoding with a state of constant size."""

from .features import FEATURES, FeatureMap
from .hybrid import HybridState, attend_hybrid
from .modules import Linformer, PooledKeys
from .operator import attend_linear
from .state import LinearState
from .window import WindowState, attend_window

__all__ = [
    "FEATURES",
    "FeatureMap",
    "HybridState",
    "LinearState",
    "Linformer",
    "PooledKeys",
    "WindowState",
    "attend_hybrid",
    "attend_linear",
    "attend_window",
]
