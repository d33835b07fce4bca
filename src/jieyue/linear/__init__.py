"""Linear attention: feature maps, bidirectional and causal, forward, backward and decoding with a state of constant size."""

from .features import FEATURES, FeatureMap
from .operator import attend_linear
from .state import LinearState

__all__ = ["FEATURES", "FeatureMap", "LinearState", "attend_linear"]
