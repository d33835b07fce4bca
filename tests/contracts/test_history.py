"""A talk within its bound: the oldest turns go, in linear time, whatever the template; a template without end is stopped."""

import sys
import time

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jieyue.data import written
from jieyue.data.history import Message, TooLong, alternate, encode_talks, fit_history, template_for
from jieyue.data.written import Writer
from jieyue.errors import InputError
from jieyue.hf.lossless_pieces import learn_lossless_vocabulary, make_lossless_tokenizer

TEMPLATES = {
    "chatml": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "trimmed": "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}<<{{ m.content | trim }}>>{% else %}"
    "[{{ m.role }}] {{ m.content | trim }}{% if m.role == 'assistant' %}{{ sep_token }}{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
    "user first": "{% if (messages | selectattr('role', 'ne', 'system') | list)[0].role != 'user' %}"
    "{{ raise_exception('the user speaks first') }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
    "plain": None,
}
ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in messages %}{% endfor %}{% endfor %}{% endfor %}"
)


def tokenizer_with(name):
    made = make_lossless_tokenizer(learn_lossless_vocabulary(["hello there 你好 user assistant system"], 200))
    made.add_special_tokens({"bos_token": "[CLS]"})
    made.chat_template = TEMPLATES[name]
    return made


TOKENIZERS = {name: tokenizer_with(name) for name in TEMPLATES}
texts = st.text(st.sampled_from("ab 你<>[]\n|"), min_size=1, max_size=9).filter(str.strip)


def talks(draw, least):
    said = draw(st.lists(texts, min_size=least, max_size=14))
    start = draw(st.sampled_from([[], [Message("system", "Be kind.")]]))
    return [*start, *alternate(said)]


def slowly_fitted(tokenizer, messages, most, reply):
    """The oracle: one oldest turn less until it fits, each time written and tokenised as a whole."""
    first = int(messages[0].role == "system")
    for dropped in range(len(messages) - first):
        kept = [*messages[:first], *messages[first + dropped :]]
        listed = [{"role": one.role, "content": one.text} for one in kept]
        try:
            text = tokenizer.apply_chat_template(
                listed, chat_template=template_for(tokenizer), tokenize=False, add_generation_prompt=reply
            )
        except Exception:
            if dropped:
                continue
            raise
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) <= most:
            return ids, dropped
    return None


@settings(max_examples=60)
@given(data=st.data(), name=st.sampled_from(list(TEMPLATES)), most=st.integers(4, 200), reply=st.booleans())
def test_the_fewest_oldest_turns_go(data, name, most, reply):
    tokenizer, messages = TOKENIZERS[name], talks(data.draw, 1)
    if messages[-1].role == "assistant":
        messages = messages[:-1]
    if len(messages) == 1 and messages[0].role == "system":
        return
    expected = slowly_fitted(tokenizer, messages, most, reply)
    if expected is None:
        with pytest.raises(TooLong, match="newest turn"):
            fit_history(tokenizer, messages, most, reply=reply)
    else:
        found = fit_history(tokenizer, messages, most, reply=reply)
        assert (found.ids.tolist(), found.num_dropped) == expected


@settings(max_examples=60)
@given(data=st.data(), name=st.sampled_from(["chatml", "trimmed", "user first"]))
def test_turns_are_where_every_beginning_says(data, name):
    """The linear way against the quadratic one, which writes every beginning of the talk."""
    tokenizer, messages = TOKENIZERS[name], talks(data.draw, 1)
    writer = Writer(tokenizer)
    listed = writer.listed(messages)
    whole = writer.render(listed)
    assert writer.marked_spans(listed, whole) in (None, writer.spans(listed, whole))


def test_marks_are_used_and_not_given_up():
    for name in ("chatml", "trimmed"):
        writer = Writer(TOKENIZERS[name])
        listed = writer.listed(alternate([f"hello {n}" for n in range(20)]))
        assert writer.marked_spans(listed, writer.render(listed))


@settings(max_examples=40)
@given(data=st.data(), name=st.sampled_from(["chatml", "trimmed", "user first"]))
def test_what_one_talk_taught_holds_for_the_next(data, name):
    """Many talks at once, by borders learned from the first ones, against every beginning of each."""
    many = [talks(data.draw, 1) for _ in range(5)]
    writer = Writer(TOKENIZERS[name])
    for messages, (whole, spans) in zip(many, writer.written(many), strict=True):
        listed = writer.listed(messages)
        assert whole == writer.render(listed) and spans == Writer(TOKENIZERS[name]).spans(listed, whole)


def test_known_borders_cost_the_template_nothing(monkeypatch):
    own, asked = Writer.render, []
    monkeypatch.setattr(Writer, "render", lambda *given, **options: asked.append(given) or own(*given, **options))
    for name in ("chatml", "trimmed", "user first"):
        asked.clear()
        Writer(TOKENIZERS[name]).written([alternate([f"hello {n}", "there", "you"]) for n in range(40)])
        assert len(asked) < 12


def test_many_texts_have_the_tokens_of_each(monkeypatch):
    for name, tokenizer in TOKENIZERS.items():
        many = [alternate([f"hello {n} [SEP]", "there 你好"]) for n in range(40)]
        alone = [encode_talks(tokenizer, [talk])[0] for talk in many]
        for one, other in zip(encode_talks(tokenizer, many), alone, strict=True):
            assert one.ids.tolist() == other.ids.tolist() and one.turns == other.turns, name


@pytest.mark.parametrize("name", TEMPLATES)
def test_two_thousand_turns(name):
    """Quadratic, this takes tens of seconds."""
    messages = alternate(["hello there you " * 6] * 1999)
    started = time.process_time()
    found = fit_history(TOKENIZERS[name], messages, 4000)
    (talk,) = encode_talks(TOKENIZERS[name], [messages])
    assert time.process_time() - started < 8
    assert len(found.ids) <= 4000 and len(talk.turns) == 1999 and numpy.all(numpy.diff(talk.turns)[:, 0] > 0)


def test_a_rewriting_template_is_refused():
    tokenizer = tokenizer_with("chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if loop.last %}{{ m.content }}{% else %}-{% endif %}{% endfor %}"
    )
    for count in (3, 30):
        with pytest.raises(InputError, match="rewrites earlier turns"):
            encode_talks(tokenizer, [alternate(["hello"] * count)])


def test_a_template_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr(written, "TEMPLATE_SECONDS", 0.3)
    tokenizer = tokenizer_with("chatml")
    tokenizer.chat_template = ENDLESS
    started, tracer = time.monotonic(), sys.gettrace()
    with pytest.raises(InputError, match="did not end"):
        fit_history(tokenizer, alternate(["hello"]), 100)
    assert time.monotonic() - started < 5 and sys.gettrace() is tracer


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_last_message_is_left_open(name):
    tokenizer = TOKENIZERS[name]
    begun = fit_history(tokenizer, alternate(["hello", "there"]), 200, continued=True)
    whole = fit_history(tokenizer, alternate(["hello", "there"]), 200, reply=False)
    assert tokenizer.decode(begun.ids).endswith("there")
    assert whole.ids.tolist()[: len(begun.ids)] == begun.ids.tolist() and len(whole.ids) > len(begun.ids)
