"""Talks decode together as they do alone: float64, rows that join, leave and go back, and text that never changes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from jieyue.decoding.stream import TextStream
from jieyue.errors import InputError
from jieyue.hf.batched_decoding import Stepper
from jieyue.hf.use import use

V = 29


def llama(attention=None):
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config).double().eval()
    if attention:
        use(model, attention=attention)
    return model


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=64)).double().eval()


def mistral():
    config = MistralConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=5,
    )
    return MistralForCausalLM(config).double().eval()


def nezha():
    from jieyue.hf.nezha import NezhaConfig, NezhaForCausalLM

    config = NezhaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, sep_token_id=4
    )
    return NezhaForCausalLM(config).double().eval()


MODELS = {
    "nezha": nezha,
    "llama": llama,
    "gpt2": gpt2,
    "sliding": mistral,
    "local": lambda: llama("local(3)"),
    "sparse": lambda: llama("sparse(4)"),
    "linear": lambda: llama("linear(elu)"),
}


def whole(model, talk):
    """The oracle: the whole talk in one pass, no cache."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([talk]), use_cache=False).logits[0, -1]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_any_length_step_as_each_alone(name):
    model = MODELS[name]()
    stepper = Stepper(model)
    talks = [[3, 4, 5], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9]]
    rows, logits = stepper.begin(talks)
    for _ in range(9):
        for row, talk in zip(logits, talks, strict=True):
            close(row, whole(model, talk))
        tokens = [(sum(talk) * 7 + 3) % V for talk in talks]
        talks = [[*talk, token] for talk, token in zip(talks, tokens, strict=True)]
        logits = stepper.step(rows, tokens)
    rows.keep([2, 0])  # a row leaves, the others change places
    talks = [talks[2], talks[0]]
    for _ in range(4):
        talks = [[*talk, 4] for talk in talks]
        logits = stepper.step(rows, [4, 4])
        for row, talk in zip(logits, talks, strict=True):
            close(row, whole(model, talk))


@settings(max_examples=25)
@given(data=st.data(), name=st.sampled_from(["llama", "gpt2"]))
def test_rows_join_and_leave_in_the_middle(data, name):
    torch.manual_seed(1)
    model = MODELS[name]()
    stepper = Stepper(model)
    rows, talks = None, []
    for step in range(data.draw(st.integers(3, 9))):
        coming = data.draw(st.lists(st.lists(st.integers(1, V - 1), min_size=1, max_size=7), max_size=2))
        if coming:
            new, logits = stepper.begin(coming)
            if rows is None or not talks:
                rows, talks = new, coming
            else:
                rows.join(new)
                talks = talks + coming
        if not talks:
            continue
        tokens = [(len(talk) * 5 + step) % V for talk in talks]
        logits = stepper.step(rows, tokens)
        talks = [[*talk, token] for talk, token in zip(talks, tokens, strict=True)]
        assert rows.lengths == [len(talk) for talk in talks]
        for row, talk in zip(logits, talks, strict=True):
            close(row, whole(model, talk))
        staying = data.draw(st.sets(st.integers(0, len(talks) - 1), min_size=0, max_size=len(talks)))
        if staying:
            rows.keep(sorted(staying))
            talks = [talks[number] for number in sorted(staying)]
            assert rows.mask is None or rows.mask.shape[1] == max(rows.lengths)


def test_a_row_that_sees_padding_is_noticed():
    """The broken twin: without the mask the shorter row is wrong."""
    model = llama()
    stepper = Stepper(model)
    rows, _ = stepper.begin([[3, 4, 5], [7]])
    rows.mask = None
    logits = stepper.step(rows, [1, 1])
    close(logits[0], whole(model, [3, 4, 5, 1]))
    assert (logits[1] - whole(model, [7, 1])).abs().max() > 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_a_talk_goes_on_from_its_state(name):
    model = MODELS[name]()
    stepper = Stepper(model)
    rows, _ = stepper.begin([[3, 4, 5, 6, 7, 8, 9]])
    close(stepper.extend(rows, [1, 2, 3, 4])[0], whole(model, [3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4]))
    taken_back = rows.crop(3)
    assert taken_back == (name in ("llama", "gpt2", "sparse")) or name == "nezha"
    if taken_back:
        close(stepper.extend(rows, [2, 2])[0], whole(model, [3, 4, 5, 6, 7, 8, 9, 1, 2, 2]))
    assert rows.nbytes > 0


def test_states_that_cannot_join_say_so():
    stepper = Stepper(llama("local(3)"))
    rows, _ = stepper.begin([[1, 2]])
    assert not rows.can_join
    with pytest.raises(InputError, match="join"):
        rows.join(stepper.begin([[1]])[0])
    with pytest.raises(InputError, match="prompts"):
        stepper.begin([[]])


@pytest.fixture(scope="module")
def bytes_tokenizer():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        ["hello"], trainers.BpeTrainer(vocab_size=260, initial_alphabet=alphabet, show_progress=False)
    )
    return backend


@settings(max_examples=100)
@given(text=st.text("ab \n你好，😀<im", min_size=1, max_size=20), stop=st.sampled_from(["", "<im", "a b", "b\na"]))
def test_streamed_pieces_are_the_text(bytes_tokenizer, text, stop):
    """Joined, the pieces are the decoded text up to the stop word: every line, no stray space and no half character."""
    stream = TextStream(bytes_tokenizer.decode, [stop])
    pieces = []
    for token in bytes_tokenizer.encode(text).ids:
        pieces.append(stream.add(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    found = "".join(pieces)
    assert found == stream.text
    assert "\ufffd" not in found
    expected = text.split(stop)[0] if stop else text
    assert found.replace(" ", "") == expected.strip().replace(" ", "")
    assert stream.stopped == bool(stop and stop in text)
