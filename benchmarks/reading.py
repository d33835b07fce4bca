"""Questions answered per second by one masked forward pass each, and what the decoding alone costs.

    python benchmarks/reading.py [--questions 256] [--threads 1] [--model FOLDER]

One JSON line a row. The model is a randomly initialised BERT unless a folder is given: weights do not change the time.
The last rows time the choice of an answer alone: n-gram sets rebuilt at every step (as published), the suffix order and a
greedy walk, the comparison of all n-grams. Writes a report into --out.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from jieyue import machine
from jieyue.data.qa_files import Passage, Question
from jieyue.decoding.constraints import SuffixOrder, best_slots, read_slots
from jieyue.report import Report
from jieyue.tasks.read.masked import answer
from jieyue.tasks.read.settings import ReadSettings
from jieyue.timer import take_turns

SIZES = {"tiny": (128, 2, 256), "small": (256, 4, 1024)}  # width, layers, feed-forward


def tokenizer_of(num_words):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{at}" for at in range(num_words))]
    core = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "pad": "[PAD]"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, **{f"{key}_token": own for key, own in names.items()}
    )


def questions_of(count, num_words, passage_tokens, generator):
    def words(length):
        return " ".join(f"w{at}" for at in generator.integers(0, num_words, length))

    return [Question(str(at), words(12), (Passage(words(passage_tokens)),)) for at in range(count)]


def rebuilt(tokens, probabilities, closing):
    """The published decoder: the set of n-grams of the passage anew at every step."""
    chosen = ()
    for step in range(len(closing)):
        grams = {tuple(tokens[at : at + len(chosen) + 1]): at for at in range(len(tokens) - len(chosen))}
        allowed = {gram[-1]: at + len(chosen) for gram, at in grams.items() if gram[:-1] == chosen}
        best = max(allowed, key=lambda token: probabilities[step, allowed[token]], default=None)
        if best is None or closing[step] >= probabilities[step, allowed[best]]:
            break
        chosen += (best,)
    return chosen


def seconds(call, repeats=5):
    return statistics.median(take_turns({"": call}, repeats)[""])


def constraint_rows(passage_tokens, answer_tokens, generator):
    """Milliseconds a window: one answer of ``answer_tokens`` tokens copied from the passage."""
    tokens = generator.integers(5, 500, passage_tokens)
    table = numpy.full((32, 500), 1e-4, dtype=numpy.float32)
    closing = numpy.full(32, 1e-5, dtype=numpy.float32)
    table[numpy.arange(answer_tokens), tokens[7 : 7 + answer_tokens]] = 0.9
    at = table[:, tokens]
    closing[answer_tokens] = 0.99
    order = SuffixOrder(tokens)
    found = read_slots(order.window(0, passage_tokens), at, closing, 0)
    plain = tokens.tolist()
    assert tuple(plain[found.start : found.start + found.num_tokens]) == rebuilt(plain, at, closing)
    return {
        "passage_tokens": passage_tokens,
        "answer_tokens": answer_tokens,
        "rebuilt_ms": 1e3 * seconds(lambda: rebuilt(plain, at, closing)),
        "suffix_order_build_ms": 1e3 * seconds(lambda: SuffixOrder(tokens)),
        "greedy_ms": 1e3 * seconds(lambda: read_slots(order.window(0, passage_tokens), at, closing, 0)),
        "best_ms": 1e3 * seconds(lambda: best_slots(order.window(0, passage_tokens), at, closing, 0)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--questions", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--model", help="a folder or name of a masked language model, instead of random ones")
    parser.add_argument("--out", default=Path(__file__).parent / "results", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    generator = numpy.random.default_rng(0)
    tokenizer = tokenizer_of(given.vocabulary)
    systems = {}
    if given.model:
        model = transformers.AutoModelForMaskedLM.from_pretrained(given.model)
        systems[given.model] = (model, transformers.AutoTokenizer.from_pretrained(given.model))
    else:
        for name, (width, layers, feed_forward) in SIZES.items():
            config = transformers.BertConfig(
                vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 32,
                intermediate_size=feed_forward, max_position_embeddings=512,
            )  # fmt: skip
            torch.manual_seed(0)
            systems[name] = (transformers.BertForMaskedLM(config), tokenizer)
    rows, searches = [], []
    for passage_tokens, slots in ((60, 8), (250, 32)):
        settings = ReadSettings(answer_slots=slots)
        questions = questions_of(given.questions, given.vocabulary, passage_tokens, generator)
        for name, (model, own) in systems.items():
            for batch_size in (1, 32):
                taken = seconds(lambda: answer(model, own, questions, settings, batch_size=batch_size), repeats=3)  # noqa: B023
                row = {"model": name, "passage_tokens": passage_tokens, "answer_slots": slots, "batch": batch_size}
                rows.append(row | {"questions_per_second": round(given.questions / taken, 1)})
                print(json.dumps(rows[-1]))
    for passage_tokens, answer_tokens in ((60, 4), (250, 4), (250, 20), (2000, 20)):
        searches.append(constraint_rows(passage_tokens, answer_tokens, generator))
        print(json.dumps(searches[-1]))
    write(rows, searches, given)


def write(rows, searches, given):
    report = Report("Reading by a masked language model: questions per second")
    section = report.section("One-shot masked decoding")
    for name, value in machine.describe().items():
        section.fact(name.replace("_bytes", " memory"), value, "bytes" if name.endswith("_bytes") else "")
    how = f"{given.questions} questions of one passage each; tokenization, windows and the choice of answers included."
    section.table([name.replace("_", " ") for name in rows[0]], [list(row.values()) for row in rows], note=how)
    section = report.section("Finding the answer in a window")
    section.table(
        [
            "passage tokens",
            "answer tokens",
            "article's sets, ms",
            "suffix order, built once, ms",
            "greedy, ms",
            "best, ms",
        ],
        [[round(value, 3) for value in row.values()] for row in searches],
        note="Milliseconds a window of 32 slots: the article's n-gram sets rebuilt at each step; the suffix order, then one "
        "greedy walk or the comparison of all n-grams.",
    )
    report.save(given.out, "reading")


if __name__ == "__main__":
    main()
