"""Writes docs/families.md and its Chinese twin: every model type of transformers, and whether ``use`` leaves it unchanged.

    python docs/write_families.py [TYPE ...] [--rows FILE]

Builds each type tiny, with fresh weights, in float64 (``jieyue.hf.families``); the whole takes about an hour on two cores. Rows
are kept in FILE, one JSON line each, and those it has are not tried again unless named.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
import warnings
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import torch
import transformers

from jieyue.hf.families import COLUMNS, FamilyRow, check_family
from jieyue.hf.tiny import model_types
from jieyue.report import write_whole

ROOT = Path(__file__).parents[1]
PAGES = {"": ROOT / "docs" / "families.md", ".zh": ROOT / "docs" / "families.zh.md"}
SECONDS = 30  # of processor time; a type that takes longer is not built
MEMORY = 8 << 30  # bytes of address space: a type that cannot be made small is not built, and other processes live on
ORDER = ("wrong", "crash", "equal", "refused", "not built")
OPENING = {"": """# Model families

Written by `python docs/write_families.py` under transformers {version} and torch {torch}: {count} of {known} model types tried.

The law: `use(model, attention="full()")` leaves every output unchanged, padded and not, cached and not, or refuses in one line. Each
type is built tiny, with fresh weights, in float64. Unchanged means within 1e-12, or 10 times what the model's own SDPA and eager
attention differ by, of max(1, largest output); 1e-6 where a model has eager attention only, which may round its weights to float32,
and 1e-7 for cached steps, of models that route experts in float32.

- **forward**: `full()` equals the model, and `local(3)+atrous(5)` the model under its own mask and the pattern's, softmax written out.
- **cached**: nine tokens, one, and the rest over our cache equal the whole in one call, under both.
- **generate**: the same greedy tokens as the plain model under `full()`, and with a cache as without under the pattern.
- **trained**: the gradients under `full()` are the model's.

"–": the plain model has no such thing, or does not run so on made-up inputs. "not built": no small model or no input of the type
could be made up here, which says nothing about it: `use` tries the law on the model that it is given.

{summary}
""", ".zh": """# 模型家族

由 `python docs/write_families.py` 在 transformers {version} 和 torch {torch} 下写出：试了 {known} 种模型中的 {count} 种。

判据：`use(model, attention="full()")` 之后，所有输出都保持不变，不论有没有填充、用不用缓存；否则就用一行说明拒绝。
每种模型都用随机权重建成
很小的规模，以 float64 计算。
“不变”是指：相差不超过 1e-12，或不超过模型自己的 SDPA 与 eager 两种注意力之差的 10 倍，再乘以 max(1, 最大的输出)；
只有 eager 注意力的模型可能把权重舍入到 float32，容差为 1e-6；把词元分派给专家时用 float32 的模型，逐步使用缓存时容差为 1e-7。

- **forward**（前向）：`full()` 与原模型相等；`local(3)+atrous(5)` 等于原模型加上它自己的掩码和模式的掩码，softmax 逐项写出来计算。
- **cached**（缓存）：先九个词元，再一个，再其余，都经过我们的缓存，与一次算完整个序列相等，两种模式都如此。
- **generate**（生成）：`full()` 下贪心生成的词元与原模型相同；用模式时，有缓存与无缓存生成的词元相同。
- **trained**（训练）：`full()` 下的梯度就是原模型的梯度。

“–”：原模型没有这一项，或用编造的输入跑不起来。“未能构建”：这里编不出这种模型的小模型或输入，这不说明任何问题：
`use` 拿到你的模型时会当场检验这条判据。拒绝的理由照程序所说的原文列出。

{summary}
"""}  # fmt: skip
HEADS = {
    "": ("outcome", "types", "type", "class", "why"),
    ".zh": ("结果", "种数", "模型类型", "类", "原因"),
}
OUTCOMES = {
    "": {name: name for name in ORDER},
    ".zh": {"wrong": "错误", "crash": "崩溃", "equal": "相等", "refused": "拒绝", "not built": "未能构建"},
}


class TooLongError(TimeoutError):
    """A type took too long."""


def checked(model_type: str) -> FamilyRow:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLongError

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS, 1)  # again and again: what stops a call may be caught inside it
    try:
        return check_family(model_type)
    except TooLongError:
        return FamilyRow(model_type, why=f"takes longer than {SECONDS} s")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def page(rows: list[FamilyRow], language: str) -> str:
    counts = Counter(row.outcome for row in rows)
    said, (outcome, types, *columns) = OUTCOMES[language], HEADS[language]
    counted = "\n".join(f"| {said[name]} | {counts[name]} |" for name in ORDER)
    version = {"version": transformers.__version__, "torch": torch.__version__.split("+")[0]}
    summary = f"| {outcome} | {types} |\n| --- | --- |\n{counted}"
    text = OPENING[language].format(count=len(rows), known=len(model_types()), summary=summary, **version)
    for name in ORDER:
        chosen = [row for row in rows if row.outcome == name]
        if chosen:
            text += f"\n## {said[name].capitalize()}\n\n"
            text += table(chosen, columns, said["equal"]) if name in ORDER[:3] else reasons(chosen, columns)
    return text


def table(rows: list[FamilyRow], columns: list[str], equal: str) -> str:
    lines = [f"| {columns[0]} | {columns[1]} | {' | '.join(COLUMNS)} |", "| --- " * (2 + len(COLUMNS)) + "|"]
    for row in rows:
        found = [row.found.get(key, "–") for key in COLUMNS]
        told = [equal if one == "equal" else plain(one) for one in found]
        lines.append(f"| {row.model_type} | {row.tried} | " + " | ".join(told) + " |")
    return "\n".join(lines) + "\n"


def reasons(rows: list[FamilyRow], columns: list[str]) -> str:
    lines = [f"| {' | '.join(columns)} |", "| --- | --- | --- |"]
    lines += [f"| {row.model_type} | {row.tried or '–'} | {plain(row.why)} |" for row in rows]
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*")
    parser.add_argument("--rows", type=Path, default=ROOT / "build" / "families.jsonl")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    kept: dict[str, FamilyRow] = {}
    if asked.rows.is_file():
        for line in asked.rows.read_text(encoding="utf-8").splitlines():
            row = FamilyRow(**json.loads(line))
            kept[row.model_type] = row
    asked.rows.parent.mkdir(parents=True, exist_ok=True)
    for model_type in asked.types or [one for one in model_types() if one not in kept]:
        kept[model_type] = checked(model_type)
        with asked.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(kept[model_type]), ensure_ascii=False) + "\n")
        sys.stderr.write(f"{model_type}: {kept[model_type].outcome}\n")
    for language, path in PAGES.items():
        write_whole(path, page([kept[name] for name in model_types() if name in kept], language))


if __name__ == "__main__":
    main()
