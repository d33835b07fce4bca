"""Predicted against measured memory and time, each setting in a process of its own; goes on where it was stopped.

    python benchmarks/memory_prediction.py                                   # all cells, into benchmarks/results
    python benchmarks/memory_prediction.py --models tiny small               # the presets' settings alone
    python benchmarks/memory_prediction.py --models bert-base --lengths 128 --micro 1 4
    python benchmarks/memory_prediction.py --seconds --largest 4GiB          # time cells measured before, on an idle machine

BERT-base, ALBERT-base and GPT-2 small from their configurations (positions extended), random weights, 128, 512 and 2048
tokens, micro-batches of 1, 4 and 16 rows, two of them an update; the presets at three settings each. Goals: allocator within
1 %, process (VmHWM, glibc's mmap threshold at 64 KiB) within max(5 %, 8 MiB), seconds within 20 %. Cells predicted above
``--largest`` are predicted only. Each cell is written to ``memory-prediction.jsonl`` as it is known and never run twice;
the report of all of them is ``memory-prediction.json``. Bytes do not mind other jobs; ``--seconds`` wants an idle machine.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch

from jieyue import machine
from jieyue.budget import parse_bytes
from jieyue.report import Report, write_whole

PRESETS = {"tiny": [(8, 64, False), (8, 256, False), (8, 256, True)],
           "small": [(8, 64, False), (4, 256, False), (4, 512, True)]}  # fmt: skip
CHECKPOINTS = ("bert-base", "albert-base", "gpt2")
VOCABULARY, PIECES = 8000, 2
GOAL_ALLOCATOR, GOAL_PROCESS, GOAL_PROCESS_BYTES, GOAL_SECONDS = 0.01, 0.05, 8 * 2**20, 0.2


def subject(name, length):
    """The model by its published sizes, weights random."""
    import transformers

    from jieyue.hf import presets
    from jieyue.planning.subject import Subject

    if name == "gpt2":
        return Subject(config=transformers.GPT2Config(n_positions=2048), head="causal-lm", positions=length)
    if name == "albert-base":
        sizes = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "embedding_size": 128}
        config = transformers.AlbertConfig(max_position_embeddings=2048, **sizes)
    elif name == "bert-base":
        config = transformers.BertConfig(max_position_embeddings=2048)
    else:
        sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 8192, "tie_word_embeddings": True}
        config = transformers.EuroBertConfig(**sizes, pad_token_id=0, **presets.PRESETS[name])
    return Subject(config=config, head="masked-lm", positions=length)


def measure(name, micro, length, checkpointing, largest):
    """The bytes of one cell: predicted and, up to ``largest``, measured."""
    from jieyue.planning.measurement import measure_alone
    from jieyue.planning.prediction import predict
    from jieyue.planning.setting import Setting

    found, rows = subject(name, length), PIECES * micro
    setting = Setting(micro_batch=micro, checkpointing=checkpointing)
    started = time.perf_counter()
    cost = predict(found.step(setting), effective_batch=rows, micro_batch=micro, checkpointing=checkpointing)
    cell = {"trace_seconds": time.perf_counter() - started}
    cell["predicted"] = {key: value for key, value in asdict(cost).items() if value}
    if cost.peak_bytes > largest:
        return cell
    measured = measure_alone(found, setting, rows, timed=False)
    process = measured.fixed_bytes + cost.peak_bytes - measured.process_bytes
    return cell | {
        "measured": {key: value for key, value in measured.to_dict().items() if value is not None},
        "allocator_error": cost.peak_bytes / measured.peak_bytes - 1,
        "process_error_bytes": process,
        "process_error": process / measured.process_bytes,
        "process_within": abs(process) <= max(GOAL_PROCESS * measured.process_bytes, GOAL_PROCESS_BYTES),
    }


def clock(name, micro, length, checkpointing):
    """The seconds of one cell: predicted from shallow copies, and measured."""
    from jieyue.planning.calibration import Calibration
    from jieyue.planning.measurement import seconds_alone
    from jieyue.planning.setting import Setting

    found, rows = subject(name, length), PIECES * micro
    setting = Setting(micro_batch=micro, checkpointing=checkpointing)
    predicted, measured = Calibration(found).seconds(setting, rows), seconds_alone(found, setting, rows)
    return {"predicted_seconds": predicted, "seconds": measured, "seconds_error": predicted / measured - 1}


def tell(cells):
    """All cells as a report."""
    report = Report("Memory and time of an update: predicted against measured")
    section, ran = report.section("Cells"), [cell for cell in cells if "measured" in cell]
    timed = [cell for cell in cells if "seconds" in cell]
    for what, key, goal, known in (
        ("allocator", "allocator_error", GOAL_ALLOCATOR, ran),
        ("seconds", "seconds_error", GOAL_SECONDS, timed),
    ):
        within = sum(abs(cell[key]) <= goal for cell in known)
        worst = max((abs(cell[key]) for cell in known), default=0.0)
        section.fact(f"{what} within {goal:.0%}", f"{within} of {len(known)}", how=f"largest error {worst:.2%}")
    within = sum(cell["process_within"] for cell in ran)
    worst = max((abs(cell["process_error"]) for cell in ran), default=0.0)
    section.fact("process within 5 % or 8 MiB", f"{within} of {len(ran)}", how=f"largest error {worst:.1%}")
    columns = ["model", "tokens", "micro-batch", "checkpointing", ("predicted", "bytes"), ("measured", "bytes"), "error",
               ("process", "bytes"), "process error", ("predicted seconds", "seconds"), ("measured seconds", "seconds"),
               "seconds error"]  # fmt: skip
    rows = []
    for cell in cells:
        row = [cell["model"], cell["length"], cell["micro_batch"], "yes" if cell["checkpointing"] else "no"]
        row.append(cell["predicted"]["peak_bytes"])
        if "measured" in cell:
            found = cell["measured"]
            row += [found["peak_bytes"], f"{cell['allocator_error']:+.2%}", found["process_bytes"],
                    f"{cell['process_error']:+.1%}"]  # fmt: skip
        else:
            row += [None, "predicted only", None, ""]
        known = "seconds" in cell
        row += (
            [cell["predicted_seconds"], cell["seconds"], f"{cell['seconds_error']:+.0%}"] if known else [None, None, ""]
        )
        rows.append(row)
    note = "Float32, AdamW, two pieces an update. Process: VmHWM against fixed bytes and predicted peak."
    section.table(columns, rows, title="One update, each cell in a process of its own", note=note)
    section = report.section("Machine")
    for what, value in machine.describe().items():
        section.fact(what, value, "bytes" if what.endswith("_bytes") else "")
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["tiny", "small", *CHECKPOINTS])
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 512, 2048])
    parser.add_argument("--micro", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--largest", default="12GiB", help="predicted peaks above it are not run")
    parser.add_argument("--seconds", action="store_true", help="time cells whose bytes were measured")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    largest = parse_bytes(given.largest)
    kept = given.out / "memory-prediction.jsonl"
    cells = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
    keys = ("model", "micro_batch", "length", "checkpointing")
    known = {tuple(cell[key] for key in keys): cell for cell in cells}
    grid = [(micro, length, False) for length in given.lengths for micro in given.micro]
    if given.threads:
        torch.set_num_threads(given.threads)
    for name in given.models:
        for setting in PRESETS.get(name, grid):
            cell = known.get((name, *setting), {})
            if given.seconds:
                if "measured" not in cell or "seconds" in cell or cell["predicted"]["peak_bytes"] > largest:
                    continue
                cell |= clock(name, *setting) | {"threads": torch.get_num_threads()}
            else:
                if "measured" in cell or (cell and cell["predicted"]["peak_bytes"] > largest):
                    continue
                found = dict(zip(keys, (name, *setting), strict=True)) | measure(name, *setting, largest)
                cells = [each for each in cells if each is not cell] + [found]
                cell = found
            print(json.dumps(cell), flush=True)
            write_whole(kept, "".join(json.dumps(each) + "\n" for each in cells))
            tell(cells).save(given.out, "memory-prediction")


if __name__ == "__main__":
    main()
