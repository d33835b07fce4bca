"""What decoding with linear attention must remember: the sums over all keys so far, of one size however many they were.

    S = Σ_j φ(k_j) v_jᵀ,  z = Σ_j φ(k_j);      append adds keys, read divides φ(q)·S by φ(q)·z

Memory F·(V + 1) numbers per key head and row of the batch (float32 or float64); a token costs O(F·V), whatever came before.
Sums only grow: a key cannot be taken back exactly, so there is no cropping; ``copy`` beforehand is the way back.

Letters: B batch, H query heads, G key heads, N positions, D size of a query, V size of a value, F number of features.
"""

from __future__ import annotations

from torch import Tensor

from jieyue.errors import InputError

from .checks import refuse_positions
from .definition import define_read, define_sums
from .features import FeatureMap, resolve
from .sums import num_features
from .tiles import Form, spans, wide_type

__all__ = ["LinearState"]

_APPEND_TOGETHER = 256


class LinearState:
    """The state of one layer: ``sums`` [B, G, F, V + 1], S and z side by side, and the map and scale that made them.

    ``LinearState.empty(k, v, "elu")`` starts one; ``attend_linear(..., return_state=True)`` returns one. It changes only by its
    own ``append``, ``reorder`` and ``load``, and by them it gets new tensors: one read earlier stays as it was.
    """

    def __init__(self, features: str | FeatureMap, scale: float, sums: Tensor) -> None:
        self.features = resolve(features)
        self.scale = scale
        self.sums = sums

    @classmethod
    def empty(cls, k: Tensor, v: Tensor, features: str | FeatureMap = "elu", scale: float | None = None) -> LinearState:
        """A state that has seen nothing, for keys and values of these batch, heads, sizes, type and device."""
        features = resolve(features)
        refuse_positions("LinearState", features, "its sums cannot be continued")
        width = features.prepare(k[:1, :1, :1].to(wide_type(k))).shape[-1]
        shape = (*k.shape[:2], num_features(features.polynomial, width), v.shape[3] + 1)
        return cls(features, features.scale_for(scale, k.shape[3]), k.new_zeros(shape, dtype=wide_type(k)))

    @property
    def nbytes(self) -> int:
        """Bytes held; the same after any number of tokens."""
        return self.sums.nbytes

    def append(self, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> None:
        """Adds keys [B, G, N, D] and values [B, G, N, V]; those with key_mask [B, N] False are left out."""
        self._fits("k", k, self.sums.shape[:2], None)
        self._fits("v", v, self.sums.shape[:2], self.sums.shape[3] - 1)
        for span in spans(k.shape[2], _APPEND_TOGETHER):
            mask = None if key_mask is None else key_mask[:, span]
            self.sums = define_sums(k[:, :, span], v[:, :, span], mask, self.sums, self._form)

    def read(self, q: Tensor) -> Tensor:
        """out [B, H, N, V]: what queries [B, H, N, D] see of all keys so far; zeros where that has no weight."""
        return self.read_weights(q)[0]

    def read_weights(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """out, and the sum of weights [B, H, N] that it was divided by."""
        if q.dim() != 4 or q.shape[0] != self.sums.shape[0] or q.shape[1] % self.sums.shape[1]:
            raise InputError(
                f"LinearState: q has shape {list(q.shape)}, expected [{self.sums.shape[0]}, a multiple of "
                f"{self.sums.shape[1]}, N, D]"
            )
        return define_read(q, self.sums, self._form)

    def reorder(self, index: Tensor) -> None:
        """Row b becomes what row index[b] was: beams that live on, or a batch made larger or smaller."""
        self.sums = self.sums.index_select(0, index)

    def crop(self, num_tokens: int) -> None:
        """Refused: what has been summed cannot be taken back exactly."""
        raise InputError(
            f"LinearState.crop({num_tokens}): found sums over all tokens, expected no cropping: taking keys back by subtraction "
            f"is not exact; keep a copy() from before them and load it"
        )

    def copy(self) -> LinearState:
        """An independent state with the same contents."""
        return LinearState(self.features, self.scale, self.sums.clone())

    def tensors(self) -> dict[str, Tensor]:
        """What to save (safetensors, ``torch.save``); ``load`` takes it back."""
        return {"sums": self.sums}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Contents saved by ``tensors``; heads and sizes must be this state's, the batch may differ."""
        found = tensors.get("sums")
        if found is None or found.shape[1:] != self.sums.shape[1:]:
            what = sorted(tensors) if found is None else list(found.shape)
            raise InputError(
                f"LinearState.load: found {what}, expected sums of shape [B, {str(list(self.sums.shape[1:]))[1:-1]}]"
            )
        self.sums = found.to(self.sums)

    def check(self, features: FeatureMap, scale: float, k: Tensor, v: Tensor) -> LinearState:
        """This state, if a call with that map, scale and keys can continue it; ``InputError`` otherwise."""
        if features != self.features or scale != self.scale:
            raise InputError(
                f"attend_linear: state was made with features={self.features.name!r}, scale={self.scale}, and the call has "
                f"features={features.name!r}, scale={scale}; expected the same"
            )
        self._fits("k", k, self.sums.shape[:2], None)
        self._fits("v", v, self.sums.shape[:2], self.sums.shape[3] - 1)
        if wide_type(k) != self.sums.dtype or k.device != self.sums.device:
            raise InputError(
                f"attend_linear: state is {self.sums.dtype} on {self.sums.device} and k {k.dtype} on {k.device}, expected a "
                f"state in {wide_type(k)} on the same device"
            )
        return self

    @property
    def _form(self) -> Form:
        return Form(self.features, self.features.polynomial, self.scale, 0, _APPEND_TOGETHER)

    def _fits(self, name: str, x: Tensor, leading: tuple[int, ...], width: int | None) -> None:
        if x.dim() != 4 or x.shape[:2] != leading or width not in (None, x.shape[3]):
            shape = [*leading, "N", "D" if width is None else width]
            raise InputError(f"LinearState: {name} has shape {list(x.shape)}, expected {shape} to match the state")
