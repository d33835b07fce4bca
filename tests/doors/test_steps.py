"""Search over transformers' models: generate() is the oracle, with and without padding, for every kind of model."""

import pytest
import torch
from attention_models import inputs, make

import jieyue
from jieyue.decoding.search import beam, greedy
from jieyue.errors import InputError
from jieyue.hf.steps import steps

LIMIT, STOP = 9, 2


def lively(name):
    """A tiny model whose texts differ and end."""
    model = make(name)
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.4 * torch.randn_like(p))
    model.generation_config.update(eos_token_id=STOP, pad_token_id=0, max_length=None, forced_eos_token_id=None)
    return model


def cut(row):
    """Tokens up to the stop token."""
    row = row.tolist()
    return tuple(row[: row.index(STOP)] if STOP in row else row)


@pytest.fixture(params=["gpt2", "llama", "bart"], scope="module")
def case(request):
    torch.manual_seed(1)
    model = lively(request.param)
    ids, mask = inputs(12, "right" if request.param == "bart" else "left")
    ids, mask = torch.cat([ids, ids.flip(0)[:, torch.randperm(12)]]), torch.ones(4, 12, dtype=torch.long)
    padded = slice(-5, None) if request.param == "bart" else slice(0, 5)
    mask[1, padded] = ids[1, padded] = 0
    ids[ids == 0] = 5
    return model, ids * mask, mask, 1 if request.param == "bart" else 12


def test_greedy_is_generate(case):
    model, ids, mask, first = case
    found = greedy(steps(model), ids, mask, stop=[STOP], max_tokens=LIMIT)
    expected = model.generate(ids, attention_mask=mask, max_new_tokens=LIMIT, do_sample=False)[:, first:]
    assert [one.tokens for one in found] == [cut(row) for row in expected]


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("width", [2, 3, 5])
def test_beam_is_generate(case, width, penalty):
    model, ids, mask, first = case
    found = beam(steps(model), ids, mask, width=width, stop=[STOP], max_tokens=LIMIT, length_penalty=penalty)
    expected = model.generate(
        ids, attention_mask=mask, max_new_tokens=LIMIT, num_beams=width, num_return_sequences=width,
        length_penalty=penalty, early_stopping="never", do_sample=False,
    )[:, first:]  # fmt: skip
    for row, own in enumerate(found):
        theirs = [cut(text) for text in expected[row * width : (row + 1) * width]]
        assert [one.tokens for one in own] == theirs[: len(own)]
        assert len(own) == width
    assert len({one.tokens for own in found for one in own}) > 4, "texts that are all the same prove nothing"


def test_reported_probability_is_the_models(case):
    """log p of a text read in one pass, teacher-forced."""
    model, ids, mask, first = case
    for own in beam(steps(model), ids[:1], mask[:1], width=3, stop=[STOP], max_tokens=LIMIT)[0]:
        text = torch.tensor([[*own.tokens, *([STOP] if own.finished else [])]])
        if first == 1:
            begun = torch.cat([torch.full((1, 1), 1), text[:, :-1]], 1)
            logits = model(input_ids=ids[:1], decoder_input_ids=begun).logits
        else:
            logits = model(torch.cat([ids[:1], text], 1)).logits[:, ids.shape[1] - 1 : -1]
        total = logits.log_softmax(-1).gather(2, text[:, :, None]).sum()
        assert own.log_probability == pytest.approx(float(total.detach()), abs=1e-9)


def test_beam_over_patterns():
    """Our caches follow their hypotheses: the same texts as from a step that remembers nothing."""
    torch.manual_seed(1)
    model = lively("llama")
    jieyue.use(model, attention="local(3),sparse(2)")
    ids, _ = inputs(12)

    class Whole:
        def __init__(self, tokens):
            self.tokens = tokens

        def reorder(self, index):
            self.tokens = self.tokens[index]

    def uncached(tokens, state):
        state = Whole(tokens if state is None else torch.cat([state.tokens, tokens[:, None]], 1))
        return model(state.tokens, use_cache=False).logits[:, -1], state

    ids[ids == 0] = 7
    settings = {"width": 3, "stop": [STOP], "max_tokens": LIMIT}
    cached = beam(steps(model), ids, **settings)
    plain = beam(uncached, ids, **settings)
    assert [[one.tokens for one in own] for own in cached] == [[one.tokens for one in own] for own in plain]


def test_what_is_refused():
    model = lively("gpt2")
    with pytest.raises(InputError, match="padding on the left"):
        steps(model)(torch.ones(1, 4, dtype=torch.long), torch.tensor([[1, 1, 1, 0]]))
    with pytest.raises(InputError, match="eval"):
        steps(model.train())
