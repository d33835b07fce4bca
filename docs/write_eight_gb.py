"""Writes the table of docs/eight-gb.md and its Chinese twin: what fits in 8 GiB, by the planner behind ``jieyue plan model``.

    python docs/write_eight_gb.py

Nothing is trained and no weight is allocated: each cell is the largest micro-batch of an update whose predicted peak, with
half a GiB for the interpreter and its libraries, stays within the budget.
"""

from __future__ import annotations

import copy
from pathlib import Path

from transformers import BertConfig, GPT2Config, LlamaConfig, PreTrainedConfig, T5Config

from jieyue.budget import Cost, format_bytes
from jieyue.planning.search import largest_fitting, step_costs
from jieyue.planning.setting import Setting
from jieyue.planning.subject import VOCABULARY_HEADS, Subject
from jieyue.report import write_whole

DOCS = Path(__file__).resolve().parent
BUDGET, FIXED, BATCH, LENGTHS = 8 * 2**30, 2**29, 32, (512,)
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
BILLION = {
    "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4,
}  # fmt: skip
MODELS: tuple[tuple[str, PreTrainedConfig, str], ...] = (
    ("BERT-base", BertConfig(), "classification"),
    ("BERT-large", BertConfig(**LARGE), "classification"),
    ("GPT-2 medium", GPT2Config(n_embd=1024, n_layer=24, n_head=16), "causal-lm"),
    ("T5-base", T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12), "sequence-to-sequence"),
    ("Llama 1.1B", LlamaConfig(**BILLION), "causal-lm"),
)
HEADER = {
    ".md": (
        "model",
        "head",
        "tokens",
        "AdamW",
        "AdamW, checkpointing",
        "Adafactor, checkpointing",
        "{} at once, {}",
        "needs {}",
    ),
    ".zh.md": (
        "模型",
        "任务头",
        "词元",
        "AdamW",
        "AdamW，激活重算",
        "Adafactor，激活重算",
        "一次 {} 行，{}",
        "需要 {}",
    ),
}


def settings(head: str) -> list[Setting]:
    chunked = head in VOCABULARY_HEADS
    plain = Setting(micro_batch=1, chunked=chunked)
    return [
        plain,
        Setting(micro_batch=1, chunked=chunked, checkpointing=True),
        Setting(micro_batch=1, chunked=chunked, checkpointing=True, optimizer="adafactor"),
    ]


def cell(subject: Subject, setting: Setting) -> tuple[int, int]:
    """(largest micro-batch or 0, bytes of the process) of a setting."""
    step = subject.step(setting)
    found = largest_fitting(step_costs(step, BATCH, setting.checkpointing, FIXED), BATCH, BUDGET - FIXED)
    if isinstance(found, Cost):
        return 0, found.peak_bytes + FIXED
    return found[0], found[1].peak_bytes + FIXED


def rows() -> list[tuple[str, str, int, list[tuple[int, int]]]]:
    found = []
    for name, config, head in MODELS:
        for length in LENGTHS:
            subject = Subject(config=copy.deepcopy(config), head=head, positions=length)
            found.append((name, head, length, [cell(subject, setting) for setting in settings(head)]))
            print(found[-1], flush=True)
    return found


def table(found: list[tuple[str, str, int, list[tuple[int, int]]]], suffix: str) -> str:
    *titles, fits, needs = HEADER[suffix]
    lines = ["| " + " | ".join(titles) + " |", "|---|---|---:|---|---|---|"]
    for name, head, length, cells in found:
        told = [
            fits.format(many, format_bytes(size)) if many else needs.format(format_bytes(size)) for many, size in cells
        ]
        lines.append("| " + " | ".join([name, head, str(length), *told]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    found = rows()
    for suffix in HEADER:
        page = DOCS / f"eight-gb{suffix}"
        before, mark, rest = page.read_text(encoding="utf-8").partition("<!-- eight-gb -->\n")
        _, end, after = rest.partition("<!-- end of eight-gb -->")
        assert mark and end, page
        write_whole(page, before + mark + table(found, suffix) + end + after)


if __name__ == "__main__":
    main()
