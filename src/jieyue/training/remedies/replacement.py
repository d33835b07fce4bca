"""Random replacement of what the decoder reads (7259): with wrong tokens before it, it still has to say the right one.

With probability ``p_example`` an example is touched; each of its target tokens is then replaced with probability ``p_token``.
Labels, special tokens, padding and the source are never touched, and no position waits for another: training stays parallel.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor, nn

from jieyue.errors import InputError
from jieyue.tally import Tally
from jieyue.training.objective import Objective

from .embeddings import input_embedding
from .remedy import Remedy, Rows, uniforms
from .targets import bare, decoder_inputs, special_ids, target_inputs

__all__ = ["replace_tokens"]

Pool = Literal["target", "sequence", "vocabulary"]
_POOLS = ("target", "sequence", "vocabulary")
_TOUCHED, _REPLACED, _CHOSEN = 1, 2, 3  # streams of chance


def replace_tokens(
    p_token: float = 0.3,
    p_example: float = 0.5,
    pool: Pool = "target",
    *,
    specials: Collection[int] | None = None,
) -> Remedy:
    """A remedy: target tokens that the decoder reads are replaced by random ones; what it has to say stays.

    ``pool``: where the new token comes from. ``target``: the example's own target tokens, without specials (the article's text);
    ``sequence``: all its tokens, source and specials included (the code behind the article's table); ``vocabulary``: any token
    but specials. ``specials``: ids never replaced; None: those that the model's configuration names.

    Cost: a few passes over [B, T] integers; no measurable time or memory. On average p_example · p_token of the targets are
    drawn anew, and some of these fall on the token that stood there. ``InputError`` for what is no probability or no pool.
    Source: Su 2020, 7259.
    """
    is_known = all(isinstance(share, int | float) and 0 <= share <= 1 for share in (p_token, p_example))
    if not is_known or pool not in _POOLS:
        raise InputError(
            f"replace_tokens({p_token}, {p_example}, {pool!r}): expected probabilities and one of {', '.join(_POOLS)}"
        )

    def run(objective: Objective, model: nn.Module, rows: Rows, step: int) -> Tally:
        name, tokens = decoder_inputs(model, rows)
        never = torch.tensor(special_ids(model) if specials is None else sorted({*specials}), device=tokens.device)
        targets = target_inputs(model, rows, tokens, never)
        positions, seeds = targets.cumsum(1), rows.seeds[:, None]
        touched = uniforms(seeds, torch.zeros_like(seeds), _TOUCHED) < p_example
        replaced = targets & touched & (uniforms(seeds, positions, _REPLACED) < p_token)
        drawn = _drawn(model, rows, tokens, targets, never, uniforms(seeds, positions, _CHOSEN))
        return objective(model, rows.changed(**{name: torch.where(replaced, drawn, tokens)}))

    def _drawn(model: nn.Module, rows: Rows, tokens: Tensor, targets: Tensor, never: Tensor, chance: Tensor) -> Tensor:
        if pool == "target":
            return _from_own(tokens, targets, chance)
        if pool == "sequence":
            return _from_own(*_everything(rows, tokens), chance)
        table = input_embedding(bare(model)).weight
        assert isinstance(table, Tensor)
        allowed = len(table) - len(never)
        token = (chance * allowed).long().clamp_max(allowed - 1)
        for special in never:  # ascending: the token's place among the allowed becomes its id
            token = token + (token >= special)
        return token

    return Remedy(f"replace_tokens({p_token:g}, {p_example:g}, {pool!r})", run)


def _from_own(tokens: Tensor, inside: Tensor, chance: Tensor) -> Tensor:
    """For each number in [0, 1) one of the row's tokens that are ``inside``, each equally likely."""
    count = inside.sum(1, keepdim=True)
    order = inside.long().argsort(dim=1, descending=True, stable=True)
    place = torch.minimum((chance * count).long(), (count - 1).clamp_min(0))
    return tokens.gather(1, order.gather(1, place))


def _everything(rows: Rows, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Source and target of each example, and which of these are no padding."""
    source = rows["input_ids"]
    mask = rows.get("attention_mask")
    kept = torch.ones_like(source, dtype=torch.bool) if mask is None else mask.bool()
    if tokens is source:
        return source, kept
    written = nn.functional.pad(rows["labels"][:, :-1] != -100, (1, 0), value=True)
    return torch.cat([source, tokens], 1), torch.cat([kept, written], 1)
