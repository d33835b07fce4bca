"""The best weights of a training, by the task's deciding score on the examples set aside, and when to stop looking for better ones.

They are kept beside the checkpoints, with the scores so far, so that an interrupted run that goes on knows them. Only what was
measured up to the update that it goes on from counts: the rest will be measured again.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from jieyue.report import write_whole

__all__ = ["BestWeights"]

_WEIGHTS, _SCORES = "best.safetensors", "best.json"


@dataclass
class BestWeights:
    """``folder``: where they are kept; ``keeps``: whether weights are kept at all; ``patience``: evaluations without a better
    score after which ``is_over``, None = never. ``scores``: (update, score) of every evaluation; ``best``: the best of them, the
    first among equals."""

    folder: Path
    higher_is_better: bool
    keeps: bool
    patience: int | None = None
    scores: list[tuple[int, float]] = field(default_factory=list)
    best: tuple[int, float] | None = None

    def resumed(self, step: int) -> None:
        """Takes up what an interrupted run had found up to its update ``step``; better weights from later on do not count."""
        path = self.folder / _SCORES
        if not path.is_file():
            return
        found = [(int(at), float(score)) for at, score in json.loads(path.read_text(encoding="utf-8"))["scores"]]
        for at, score in found:
            if at <= step:
                self.scores.append((at, score))
                if self._is_better(score):
                    self.best = (at, score)
        kept = json.loads(path.read_text(encoding="utf-8"))["best"]
        if self.keeps and self.best is not None and kept is not None and kept[0] != self.best[0]:
            self.best = None  # its weights are gone: a later update's took their place, and will again

    def take(self, step: int, score: float, model: nn.Module) -> None:
        """Notes a score, and keeps the model's weights where it is the best one. A score that is no number is never the best."""
        self.scores.append((step, score))
        if self._is_better(score):
            self.best = (step, score)
            if self.keeps:
                self.folder.mkdir(parents=True, exist_ok=True)
                part = self.folder / f"{_WEIGHTS}.part"
                trained = _trained(model)
                save_model(model, str(part)) if trained is None else save_file(trained, str(part))
                part.replace(self.folder / _WEIGHTS)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / _SCORES, json.dumps({"scores": self.scores, "best": self.best}) + "\n")

    @property
    def is_over(self) -> bool:
        """Whether ``patience`` evaluations have passed without a better score."""
        if self.patience is None or not self.scores:
            return False
        since = [at for at, _ in self.scores if self.best is None or at > self.best[0]]
        return len(since) >= self.patience

    def restore(self, model: nn.Module) -> bool:
        """Puts the best weights into the model and removes their file; False where none were kept."""
        path = self.folder / _WEIGHTS
        if not self.keeps or self.best is None or not path.is_file():
            return False
        trained = _trained(model)
        if trained is None:
            load_model(model, str(path))
        else:
            for name, value in load_file(str(path)).items():
                trained[name].copy_(value)
        path.unlink()
        return True

    def _is_better(self, score: float) -> bool:
        if math.isnan(score):
            return False
        if self.best is None:
            return True
        return score > self.best[1] if self.higher_is_better else score < self.best[1]


def _trained(model: nn.Module) -> dict[str, Tensor] | None:
    """The weights that are trained, where others are frozen and so known already; None where all are."""
    named = dict(model.named_parameters())
    if all(p.requires_grad for p in named.values()):
        return None
    return {name: p.detach() for name, p in named.items() if p.requires_grad}
