"""What remedies and search cost: seconds and peak bytes of an update under each remedy, tokens a second of beam search.

    python benchmarks/remedies.py && python benchmarks/write_docs.py      two minutes; a quiet machine

An update is forward and backward of one batch with the same attention for all (``--attention``), the median of ``--repeats``
rounds in which every remedy runs once, so that a slow moment of the machine falls on all. Beam search and transformers'
``generate`` write the same titles from the same model; the texts are compared before the times are.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from functools import partial
from pathlib import Path

import torch
import transformers

from jieyue.decoding.search import beam, greedy
from jieyue.hf.steps import steps
from jieyue.machine import describe
from jieyue.planning.measurement import measure_step
from jieyue.report import Estimate, Report
from jieyue.tally import Tally
from jieyue.tasks.title.writing import title_loss as objective
from jieyue.timer import take_turns
from jieyue.training.remedies.texts import parse_remedy

LIMITS = {
    "replace_tokens(0.3)": None, "replace_tokens(0.3, pool='sequence')": None, "replace_tokens(0.3, pool='vocabulary')": None,
    "fgm(0.5)": 2.1, "penalize_gradient(0.06)": 3.2, "fgm(0.5, add_clean=True)": None, "sample_scheduled(0.25)": None,
    "sample_scheduled(0.25, 'gumbel')": None, "rdrop(1.0)": None, "unlikelihood(1.0)": None,
}  # fmt: skip


def batch_of(vocabulary: int, rows: int, source: int, title: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(10, vocabulary, (rows, source + title), generator=generator)
    segments = (torch.arange(source + title) >= source).long().expand(rows, -1).contiguous()
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": segments,
        "labels": ids.masked_fill(segments == 0, -100),
    }


def prefix_model(vocabulary: int, hidden: int, layers: int) -> torch.nn.Module:
    from jieyue.hf.prefix import as_prefix_lm

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = as_prefix_lm(transformers.BertForMaskedLM(config))
    model.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    return model.train()


def updates(arguments: argparse.Namespace) -> list[dict]:
    """Median seconds of an update under each remedy, and its peak, as multiples of the plain one."""
    model = prefix_model(arguments.vocabulary, arguments.hidden, arguments.layers)
    if arguments.attention is not None:
        model.set_attn_implementation(arguments.attention)
    batch = batch_of(arguments.vocabulary, arguments.rows, arguments.source, arguments.title)
    runs = {"plain": objective} | {text: parse_remedy(text)(objective) for text in LIMITS}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(arguments.repeats + 1):
        order = [*runs.items()][number % len(runs) :] + [*runs.items()][: number % len(runs)]
        for name, run in order:
            started = time.perf_counter()
            tally = run(model, batch)
            (tally.total / tally.weight).backward()
            if number:
                seconds[name].append(time.perf_counter() - started)
            model.zero_grad(set_to_none=True)
    peaks = {}
    for name, run in runs.items():
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        peaks[name] = measure_step(run, model, batch, optimizer, micro_batch=arguments.rows)
    rows = []
    for name in runs:
        ratios = [own / plain for own, plain in zip(seconds[name], seconds["plain"], strict=True)]
        rows.append(
            {
                "objective": name,
                "seconds": statistics.median(seconds[name]),
                "times": statistics.median(ratios),
                "times_low_high": [min(ratios), max(ratios)],
                "limit": LIMITS.get(name),
                "peak_bytes": peaks[name],
                "peak_times": peaks[name] / peaks["plain"],
            }
        )
    return rows


def replacements(arguments: argparse.Namespace, plain: float) -> list[dict]:
    """Seconds of the replacement by itself, around an objective that does nothing: a whole update's noise would hide it."""
    model = prefix_model(arguments.vocabulary, arguments.hidden, arguments.layers)
    batch = batch_of(arguments.vocabulary, arguments.rows, arguments.source, arguments.title)

    def nothing(model, rows):
        return Tally(rows["input_ids"][0, 0], 1)

    found = []
    for text in LIMITS:
        if not text.startswith("replace_tokens"):
            continue
        run = parse_remedy(text)(nothing)
        times = take_turns({text: partial(run, model, batch)}, 20 * arguments.repeats, warmup=0)
        seconds = statistics.median(times[text])
        found.append({"objective": text, "seconds": seconds, "share": seconds / plain, "limit": 0.01})
    return found


def bart(vocabulary: int, hidden: int, layers: int) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=vocabulary, d_model=hidden, encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=hidden // 64,
        decoder_attention_heads=hidden // 64, encoder_ffn_dim=4 * hidden, decoder_ffn_dim=4 * hidden, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, forced_eos_token_id=None, init_std=0.08,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config).eval()


def writing(arguments: argparse.Namespace) -> list[dict]:
    """Tokens a second of our search and of ``generate``, on the same prompts, with the same texts as the result."""
    rows = []
    models = {
        "prefix": prefix_model(arguments.vocabulary, arguments.hidden, arguments.layers).eval(),
        "encoder-decoder": bart(arguments.vocabulary, arguments.hidden, arguments.layers // 2 or 1),
    }
    for kind, model in models.items():
        first = 1 if kind == "encoder-decoder" else arguments.source
        prompts = batch_of(arguments.vocabulary, arguments.rows, arguments.source, 0)["input_ids"]
        for width in (1, 3, 5):
            step, options = steps(model), {"stop": [2], "max_tokens": arguments.title}

            def ours(step=step, options=options, prompts=prompts, width=width):
                if width == 1:
                    return [one.tokens for one in greedy(step, prompts, **options)]
                return [own[0].tokens for own in beam(step, prompts, width=width, **options)]

            def theirs(model=model, prompts=prompts, width=width, first=first):
                found = model.generate(
                    prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=arguments.title, num_beams=width,
                    do_sample=False, length_penalty=0.0, **({"early_stopping": "never"} if width > 1 else {}),
                )[:, first:]  # fmt: skip
                texts = [row.tolist() for row in found]
                return [tuple(row[: row.index(2)] if 2 in row else row) for row in texts]

            written = theirs()
            same = ours() == written
            times = take_turns({"ours": ours, "theirs": theirs}, arguments.repeats, warmup=0)
            tokens = sum(min(len(text) + 1, arguments.title) for text in written)
            ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
            rows.append(
                {
                    "model": kind,
                    "beams": width,
                    "same_texts": same,
                    "tokens_per_second": tokens / statistics.median(times["ours"]),
                    "generate_tokens_per_second": tokens / statistics.median(times["theirs"]),
                    "times_generate": statistics.median(ratios),
                    "times_low_high": [min(ratios), max(ratios)],
                    "limit": 1.0,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {
        "rows": 8, "source": 96, "title": 32, "hidden": 256, "layers": 4, "vocabulary": 8000, "repeats": 7, "threads": 2,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--attention", default=None, help="eager or sdpa; default: jieyue's bands")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message="penalize_gradient")
    transformers.utils.logging.set_verbosity_error()
    costs = updates(arguments)
    own = replacements(arguments, costs[0]["seconds"])
    report = report_of(costs, own, writing(arguments), arguments)
    print(report.text())
    report.save(arguments.out, "remedies")


def report_of(costs: list[dict], own: list[dict], written: list[dict], arguments: argparse.Namespace) -> Report:
    """What was measured beside its goals; "missed" where a median is on the wrong side."""
    report = Report("What remedies cost, and beam search beside transformers' generate")
    section = report.section("An update under each remedy")
    rows = []
    for row in costs:
        low, high = row["times_low_high"]
        times = Estimate(row["times"], low, high, f"median, lowest and highest of {arguments.repeats} rounds")
        goal, met = row["limit"], "–"
        if goal is not None:
            met = "yes" if row["times"] <= goal else "missed"
        rows.append(
            [row["objective"], row["seconds"], times, "–" if goal is None else f"{goal:g}", met, row["peak_times"]]
        )
    section.table(
        [
            "objective",
            ("forward and backward", "seconds"),
            "times a plain update",
            "goal, at most",
            "met",
            "times its peak",
        ],
        rows,
        note=f"{arguments.rows} rows of {arguments.source} + {arguments.title} tokens, hidden size {arguments.hidden}, "
        f"{arguments.layers} layers, {arguments.vocabulary} tokens, attention {arguments.attention or 'by jieyue, prefix'}, "
        f"{arguments.threads} threads; every objective once in every round; median, lowest and highest round.",
    )
    section.table(
        ["replacement by itself", ("time", "seconds"), ("share of a plain update", "share"), "at most 1 %"],
        [
            [one["objective"], one["seconds"], one["share"], "yes" if one["share"] <= one["limit"] else "missed"]
            for one in own
        ],
        note="Around an objective that does nothing; a whole update varies by more than this.",
    )
    section = report.section("Writing")
    rows = []
    for row in written:
        low, high = row["times_low_high"]
        times = Estimate(row["times_generate"], low, high, f"median, lowest and highest of {arguments.repeats}")
        met = "yes" if row["times_generate"] >= row["limit"] else "missed"
        same = "the same" if row["same_texts"] else "different"
        rows.append(
            [row["model"], row["beams"], row["tokens_per_second"], row["generate_tokens_per_second"], times, met, same]
        )
    section.table(
        ["model", "hypotheses", ("ours, tokens", "per second"), ("generate, tokens", "per second"), "times generate",
         "at least 1.0", "texts"],
        rows,
        note="The same model and prompts, keys and values cached in both, alternating.",
    )  # fmt: skip
    report.section("Where").facts(describe())
    return report


if __name__ == "__main__":
    main()
