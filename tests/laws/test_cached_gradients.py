"""Law of the batch for losses that compare its rows: in pieces with cached gradients = undivided; plain pieces are not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from jieyue.errors import BudgetError, InputError
from jieyue.tally import Tally
from jieyue.timer import peak_bytes
from jieyue.training.accumulation import accumulate
from jieyue.training.cached_gradients import CachedGradients
from jieyue.training.microbatch import MicroBatch
from jieyue.training.objective import token_loss


class Towers(nn.Module):
    """Embeds questions and passages; the loss uses the temperature directly."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.words, self.drop = nn.Embedding(13, 6), nn.Dropout(dropout)
        self.question, self.passage = nn.Linear(6, 4), nn.Linear(6, 4)
        self.temperature = nn.Parameter(torch.tensor(0.3))
        self.double()

    def forward(self, ids, mask, head):
        words = self.drop(self.words(ids)) * mask[..., None]
        return F.normalize(head(torch.tanh(words.sum(1))), dim=-1)


def embed(model, piece):
    ids, mask = piece["ids"], piece["mask"]
    return model(ids, mask, model.question), model(piece["other"], mask, model.passage), piece["kind"]


def loss(model, questions, passages, kind):
    """In-batch negatives of the same kind only, so that integers travel with the embeddings."""
    scores = questions @ passages.T / model.temperature
    scores = scores.masked_fill(kind[:, None] != kind[None, :], -1e9)
    return token_loss(scores, torch.arange(len(scores)))


def data(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 8, (rows,), generator=generator)
    return {
        "ids": torch.randint(0, 13, (rows, 7), generator=generator),
        "other": torch.randint(0, 13, (rows, 7), generator=generator),
        "mask": (torch.arange(7) < lengths[:, None]).long(),
        "kind": torch.arange(rows) % 2,
    }


def fresh(dropout=0.0):
    torch.manual_seed(2)
    return Towers(dropout)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def gap(one, other):
    assert one.keys() == other.keys()
    return float(max((one[name] - other[name]).abs().max() for name in one))


CACHED = CachedGradients(embed, loss)


@settings(max_examples=25)
@given(rows=st.integers(1, 11), size=st.integers(1, 12), tokens=st.none() | st.integers(1, 30), seed=st.integers(0, 9))
def test_pieces_equal_the_whole(rows, size, tokens, seed):
    batch, model, whole = data(rows, seed), fresh(), fresh()
    tally = accumulate(
        CACHED, model, batch, micro_batch=MicroBatch(size, mask="mask", tokens=tokens, columns=("ids", "other"))
    )
    reference = CACHED(whole, batch)
    reference.mean().backward()
    assert gap(gradients(model), gradients(whole)) < 1e-12
    assert tally.weight == rows and tally.total == pytest.approx(reference.total.item(), rel=1e-12)


def test_plain_pieces_are_not_exact():
    """The broken twin: accumulated without cached gradients, a piece has no negatives but its own rows."""
    batch, model, whole = data(8), fresh(), fresh()
    accumulate(lambda m, b: CACHED(m, b), model, batch, micro_batch=4)
    CACHED(whole, batch).mean().backward()
    assert gap(gradients(model), gradients(whole)) > 1e-3


def test_dropout_is_drawn_once():
    """Both passes see the same dropout: as one graph over the pieces, drawn in the same order."""
    batch, model, whole = data(7), fresh(0.4).train(), fresh(0.4).train()
    torch.manual_seed(3)
    accumulate(CACHED, model, batch, micro_batch=3)
    after = torch.rand(1)
    torch.manual_seed(3)
    parts = [embed(whole, piece) for piece in MicroBatch(3).pieces(batch)]
    loss(whole, *(torch.cat(part) for part in zip(*parts, strict=True))).mean().backward()
    assert gap(gradients(model), gradients(whole)) < 1e-12
    assert torch.equal(torch.rand(1), after)  # the state moves on as after one pass


def test_one_piece_is_alive_at_a_time():
    model = nn.Sequential(nn.Linear(8, 512), nn.Tanh(), nn.Linear(512, 4))
    batch = {"x": torch.randn(256, 8)}

    def loss(model, embeddings):
        return token_loss(embeddings @ embeddings[:8].T, torch.zeros(len(embeddings), dtype=torch.long))

    objective = CachedGradients(lambda model, piece: model(piece["x"]), loss)
    peaks = {}
    for size in (256, 8):
        accumulate(objective, model, batch, micro_batch=size)
        peaks[size] = peak_bytes(lambda size=size: accumulate(objective, model, batch, micro_batch=size))
    assert peaks[8] * 6 < peaks[256]


def test_autocast_reaches_every_pass():
    seen, dtype = [], torch.bfloat16

    batch, model, whole = data(6), fresh().float(), fresh().float()

    def watched(model, piece):
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return embed(model, piece)

    tally = accumulate(CachedGradients(watched, loss), model, batch, micro_batch=2, autocast=dtype)
    assert seen == [dtype] * 6
    exact = accumulate(CACHED, whole, batch, micro_batch=2)
    assert tally.total == pytest.approx(exact.total, rel=0.05) and tally.total != exact.total
    assert all(g.dtype == torch.float32 for g in gradients(model).values())


@pytest.mark.parametrize("calls", [1, 3, 6])
def test_out_of_memory_in_either_pass_repeats_the_batch(calls):
    batch, model, whole = data(8), fresh(), fresh()
    seen = []

    def tight(model, piece):
        seen.append(len(piece["ids"]))
        if len(seen) == calls and len(piece["ids"]) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return embed(model, piece)

    micro = MicroBatch(2)
    with pytest.warns(UserWarning, match="out of memory"):
        accumulate(CachedGradients(tight, loss), model, batch, micro_batch=micro)
    CACHED(whole, batch).mean().backward()
    assert micro.rows == 1 and gap(gradients(model), gradients(whole)) < 1e-12
    with pytest.raises(BudgetError, match="one row"):
        accumulate(CachedGradients(fails, loss), model, batch, micro_batch=1)


def fails(model, piece):
    raise torch.OutOfMemoryError("out of memory")


def test_scaled_backward():
    batch, model, whole = data(6), fresh(), fresh()
    accumulate(CACHED, model, batch, micro_batch=2, backward=lambda total: (total * 8).backward())
    (CACHED(whole, batch).mean() * 8).backward()
    assert gap(gradients(model), gradients(whole)) < 1e-11


def test_refusals():
    batch, model = data(4), fresh()
    with pytest.raises(InputError, match="one entry per row"):
        accumulate(CachedGradients(lambda m, b: m.temperature, loss), model, batch, micro_batch=2)
    with pytest.raises(InputError, match="a Tally"):
        accumulate(CachedGradients(embed, lambda m, *p: p[0].sum()), model, batch, micro_batch=2)
    with pytest.raises(InputError, match="without a graph"):
        accumulate(CachedGradients(embed, lambda m, *p: Tally(torch.ones(()), 1)), model, batch, micro_batch=2)


def test_a_temperature_outside_the_model_is_refused():
    """It would get no gradient at all."""
    model, outside = fresh(), nn.Parameter(torch.tensor(1.3, dtype=torch.float64))
    in_loss = CachedGradients(embed, lambda m, q, p, kind: token_loss(q @ p.T * outside, torch.arange(len(q))))

    def scaled(model, piece):
        questions, passages, kind = embed(model, piece)
        return questions * outside, passages, kind

    for objective in (in_loss, CachedGradients(scaled, loss)):
        with pytest.raises(InputError, match="not the model's"):
            accumulate(objective, model, data(6), micro_batch=2)
        assert outside.grad is None and not gradients(model)
