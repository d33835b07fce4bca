"""What twenty trainings will hold and reserve on a GPU, predicted before any GPU has run them; and, on one, how far that was off.

    python benchmarks/cuda_predictions.py              # predicts, into benchmarks/results; no GPU is needed
    python benchmarks/cuda_predictions.py --measure    # on a GPU: runs them, three updates each, beside what was predicted

Random weights, no dropout, two pieces an update; traced on the CPU, whose operators keep the same tensors then. Each configuration
is predicted for two kinds of GPU, which differ in cuBLAS's workspace: of compute capability 8.0 (and 8.6, 8.9), and of 9.0 and
later. Kept in ``cuda_predictions.jsonl``; a prediction that is there is kept unless ``--anew``. The report is
``cuda_predictions.json``; measured, it is ``cuda-memory.json`` in ``--out``.
"""

import argparse
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from jieyue.planning.cuda_memory import Reached
from jieyue.report import Report, write_whole

RESULTS = Path(__file__).parent / "results"
KINDS = {"8.0": (8, 0), "9.0": (9, 0)}
SOME = 2**40 + 1  # bytes that stand for a workspace in a trace
GOAL = 0.05
UPDATES = 3


class Configuration(NamedTuple):
    model: str
    rows: int  # of a piece; two pieces are an update
    tokens: int
    optimizer: str = "adamw"
    dtype: str = "float32"
    checkpointing: bool = False

    @property
    def name(self):
        kept = "checkpointing" if self.checkpointing else "plain"
        return f"{self.model}, {self.rows} x {self.tokens}, {self.optimizer}, {self.dtype}, {kept}"


CONFIGURATIONS = [
    Configuration("bert-tiny", 8, 128),
    Configuration("bert-tiny", 8, 128, checkpointing=True),
    Configuration("bert-tiny", 8, 128, dtype="bfloat16"),
    Configuration("bert-tiny", 8, 128, optimizer="adafactor"),
    Configuration("bert-tiny", 8, 128, optimizer="momentum"),
    Configuration("bert-tiny", 8, 128, optimizer="tiger", dtype="bfloat16"),
    Configuration("gpt2-tiny", 8, 128),
    Configuration("gpt2-tiny", 8, 128, dtype="bfloat16", checkpointing=True),
    Configuration("gpt2-tiny", 8, 128, optimizer="muon"),
    Configuration("llama-tiny", 8, 128),
    Configuration("llama-tiny", 8, 128, optimizer="adafactor", checkpointing=True),
    Configuration("llama-tiny", 8, 128, dtype="bfloat16"),
    Configuration("t5-tiny", 8, 64),
    Configuration("t5-tiny", 8, 64, optimizer="adafactor"),
    Configuration("electra-tiny", 8, 256),
    Configuration("bert-small", 16, 128),
    Configuration("bert-small", 16, 128, dtype="bfloat16", checkpointing=True),
    Configuration("bert-base", 8, 128),
    Configuration("bert-base", 8, 128, dtype="bfloat16"),
    Configuration("bert-base", 16, 128, optimizer="adafactor", checkpointing=True),
]


def subject(model, tokens, device):
    """The model by its sizes and the objective of its head."""
    import transformers as t

    from jieyue.planning.subject import Subject

    calm = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    tiny = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    small = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 2048}
    decoder = {"n_embd": 128, "n_layer": 2, "n_head": 2, "n_positions": 256,
               "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # fmt: skip
    built = {
        "bert-tiny": lambda: (t.BertConfig(**tiny, **calm), "masked-lm"),
        "bert-small": lambda: (t.BertConfig(**small, **calm), "masked-lm"),
        "bert-base": lambda: (t.BertConfig(**calm), "masked-lm"),
        "electra-tiny": lambda: (t.ElectraConfig(**tiny, **calm, embedding_size=128), "classification"),
        "gpt2-tiny": lambda: (t.GPT2Config(**decoder), "causal-lm"),
        "llama-tiny": lambda: (t.LlamaConfig(**tiny, vocab_size=32000, num_key_value_heads=1), "causal-lm"),
        "t5-tiny": lambda: (t.T5Config(d_model=128, d_ff=512, d_kv=64, num_heads=2, num_layers=2, vocab_size=32128, dropout_rate=0.0),
                            "sequence-to-sequence"),
    }  # fmt: skip
    config, head = built[model]()
    return Subject(config=config, head=head, positions=tokens, device=device)


def parts(configuration, device):
    """(the step, the setting) that are predicted and run."""
    from jieyue.planning.setting import Setting

    setting = Setting(
        micro_batch=configuration.rows, optimizer=configuration.optimizer, dtype=configuration.dtype,
        checkpointing=configuration.checkpointing,
    )  # fmt: skip
    return subject(configuration.model, configuration.tokens, device).step(setting), setting


def predicted(configuration):
    """Bytes by kind of GPU, of one trace on the CPU."""
    from jieyue.planning.cuda_memory import workspace_bytes
    from jieyue.planning.cuda_prediction import moments_of, reached_last

    step, _ = parts(configuration, "cpu")
    parts_of_trace = moments_of(
        step, effective_batch=2 * configuration.rows, micro_batch=configuration.rows,
        checkpointing=configuration.checkpointing, workspace=SOME,
    )  # fmt: skip
    found = {}
    for kind, capability in KINDS.items():
        sized = [
            [one._replace(num_bytes=workspace_bytes(capability)) if one.num_bytes == SOME else one for one in part]
            for part in parts_of_trace
        ]
        found[kind] = reached_last(*sized)._asdict()
    return found


def measured(configuration):
    """What the GPU's allocator reached in the last of ``UPDATES`` updates, begun with nothing reserved."""
    from jieyue.planning.measurement import update_of

    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    step, setting = parts(configuration, "cuda")
    model, optimizer, update = update_of(step, setting, 2 * configuration.rows)
    for _ in range(UPDATES - 1):
        update()
    torch.cuda.reset_peak_memory_stats()
    update()
    reached = Reached(torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())
    del model, optimizer, update
    return reached


def compare(cells, kind, measure: Callable[[Configuration], Reached]):
    """Each predicted cell beside what ``measure`` finds; what cannot run says why."""
    for configuration in CONFIGURATIONS:
        if configuration.name not in cells:
            continue
        promised = Reached(**cells[configuration.name][kind])
        found: dict = {"name": configuration.name, "predicted": promised._asdict()}
        try:
            reached = measure(configuration)
        except Exception as error:  # one that fails must not hide the others; its row says so
            yield found | {"failed": f"{type(error).__name__}: {error}"[:300]}
            continue
        errors = [one / other - 1 for one, other in zip(promised, reached, strict=True)]
        yield found | {"measured": reached._asdict(), "allocated_error": errors[0], "reserved_error": errors[1]}


def tell(rows, title):
    """Of cells that were compared: the table with the relative errors."""
    report = Report(title)
    section, ran = report.section("Cells"), [row for row in rows if "measured" in row]
    for what in ("allocated", "reserved"):
        errors = [abs(row[f"{what}_error"]) for row in ran]
        within = sum(error <= GOAL for error in errors)
        worst = f"largest error {max(errors):.2%}" if errors else "none ran"
        section.fact(f"{what} within {GOAL:.0%}", f"{within} of {len(rows)}", how=worst)
    columns = ["training", ("allocated, predicted", "bytes"), ("allocated, measured", "bytes"), "error",
               ("reserved, predicted", "bytes"), ("reserved, measured", "bytes"), "error of it"]  # fmt: skip
    table = []
    for row in rows:
        line = [row["name"]]
        for key, what in (("allocated_bytes", "allocated"), ("reserved_bytes", "reserved")):
            has = "measured" in row
            line += [row["predicted"][key], row["measured"][key] if has else None]
            line.append(f"{row[f'{what}_error']:+.2%}" if has else row["failed"])
        table.append(line)
    section.table(columns, table, title="max_memory_allocated and max_memory_reserved")
    return report


def tell_predictions(cells):
    """Of cells that no GPU has run."""
    report = Report("Memory of trainings on a GPU, predicted before any GPU has run them")
    rows = [
        [name, *(cells[name][kind][key] for kind in KINDS for key in Reached._fields)]
        for name in (one.name for one in CONFIGURATIONS)
        if name in cells
    ]
    columns = ["training", *((f"{what}, {kind}", "bytes") for kind in KINDS for what in ("allocated", "reserved"))]
    note = (
        "A piece is rows x tokens, two pieces an update, the update after the first. 8.0 and 9.0: compute capability."
        " Predicted from traces on the CPU, without dropout, by the allocator's rules, with cuBLAS's workspaces; `make gpu-check`"
        " measures them."
    )
    section = report.section("Predictions")
    section.fact("measured", "not yet", how="no GPU was at hand")
    section.table(columns, rows, title="max_memory_allocated and max_memory_reserved", note=note)
    return report


def read(folder=RESULTS):
    """Predictions by name."""
    kept = folder / "cuda_predictions.jsonl"
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.is_file() else []
    return {cell["name"]: cell["predicted"] for cell in map(json.loads, lines)}


def predict_all(out, anew):
    cells = {} if anew else read(out)
    for configuration in CONFIGURATIONS:
        if configuration.name in cells:
            continue
        cells[configuration.name] = predicted(configuration)
        print(configuration.name, json.dumps(cells[configuration.name]), flush=True)
        lines = (json.dumps({"name": name, "predicted": found}) + "\n" for name, found in cells.items())
        write_whole(out / "cuda_predictions.jsonl", "".join(lines))
        tell_predictions(cells).save(out, "cuda_predictions")
    return 0


def measure_all(out, capability, device_name, measure=measured):
    """Compares on a GPU of that capability; prints the table and keeps it. 0 when every configuration ran."""
    kind = "9.0" if capability[0] >= 9 else "8.0"
    rows = []
    for row in compare(read(), kind, measure):
        rows.append(row)
        told = row.get("failed") or (
            f"allocated {row['allocated_error']:+.2%}, reserved {row['reserved_error']:+.2%} from what was measured"
        )
        print(f"{row['name']}: {told}", flush=True)
    tell(rows, f"Memory of trainings on {device_name}: predicted against measured").save(out, "cuda-memory")
    write_whole(out / "cuda-memory.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return 0 if rows and all("measured" in row for row in rows) else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--measure", action="store_true", help="on a GPU: run them, beside what was predicted")
    parser.add_argument("--anew", action="store_true", help="predict again what was predicted before")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if not given.measure:
        return predict_all(given.out, given.anew)
    if not torch.cuda.is_available():
        print("cuda_predictions: skipped, torch sees no CUDA device here")
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_properties(0)
    return measure_all(given.out, (device.major, device.minor), device.name)


if __name__ == "__main__":
    sys.exit(main())
