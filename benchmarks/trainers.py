"""The table of trainers: whose update is the undivided batch's? Each in an environment of its own, on the CPU.

    python benchmarks/trainers.py [--peers transformers trl ...] [--work FOLDER] [--docs docs]

Makes a virtual environment per trainer under --work (a temporary folder), which sees this one's torch and transformers and
installs the trainer with pip; runs every cell there (``src/jieyue/hf/peers.py``, half a minute each); writes
``benchmarks/results/trainers.jsonl``, ``docs/trainers.md``, ``docs/trainers.zh.md`` and, for every cell that is not exact, a script
in ``benchmarks/trainer_scripts``. ``--write``: the pages alone, from the results that are kept. Needs a network.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from jieyue.bench.trainers import TrainerCheck, verdict, write_scripts

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "trainers.jsonl"
INSTALLS = {
    "jieyue": [], "transformers": [], "accelerate": [],
    "trl": ["trl"], "lightning": ["lightning"], "sentence-transformers": ["sentence-transformers", "datasets"],
    "setfit": ["setfit"], "bert4torch": ["bert4torch", "requests", "httpx"],
}  # fmt: skip
NAMES = {
    "trainer": "trainer", "labels": "labels", "even": "even", "ragged": "ragged", "notes": "## Versions, and what did not run",
}  # fmt: skip
NAMES_ZH = {
    "trainer": "训练器", "labels": "标签", "even": "每行一样多", "ragged": "参差", "notes": "## 版本与没有跑成的",
}  # fmt: skip
HEADS = ("causal", "masked", "classification", "tokens", "answer", "contrastive", "contrastive, cached")
CHINESE = {
    "causal": "因果", "masked": "掩码", "classification": "分类", "tokens": "词元分类", "answer": "问答", "contrastive": "对比",
    "contrastive, cached": "对比（缓存）",
}  # fmt: skip


def environment(name, work):
    """The python of a virtual environment with the trainer, made where there is none."""
    folder = work / name
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        own = subprocess.run(
            [python, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True, check=True
        ).stdout.strip()
        seen = [path for path in sys.path if path.endswith("site-packages")]
        (Path(own) / "zz_seen.pth").write_text("\n".join(seen) + "\n", encoding="utf-8")
        if INSTALLS[name]:
            subprocess.run([python, "-m", "pip", "install", "-q", *INSTALLS[name]], check=True)
    return python


def lines_of(name, work):
    """What the trainer's run says; where it does not even start, one line with the error."""
    script = ROOT / "src" / "jieyue" / "hf" / "peers.py"
    try:
        done = subprocess.run(
            [environment(name, work), "-P", script, name], capture_output=True, text=True, env=None, check=False
        )
    except subprocess.CalledProcessError as error:
        return [{"peer": name, "versions": {}, "failed": f"pip install: exit code {error.returncode}"}]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"peer"')]
    if found:
        return found
    last = done.stderr.strip().splitlines()[-1:] or ["no output"]
    return [{"peer": name, "versions": {}, "failed": last[0]}]


def read_results():
    """Trainer -> its lines, the versions first."""
    kept = {}
    for line in RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else ():
        found = json.loads(line)
        kept.setdefault(found["peer"], []).append(found)
    return kept


def short(cell):
    if "error" in cell:
        return "error"
    if verdict(cell) == "exact":
        return "exact"
    return f"{cell['ratio']:.3f}, {cell['cosine']:.4f}" if cell["ratio"] else "no move"


def table(results, heads, names, chinese):
    """Rows: trainer and labels; columns: heads, each with k = 1, 2, 8."""
    found = [
        f"| {names['trainer']} | {names['labels']} | " + " | ".join(CHINESE[h] if chinese else h for h in heads) + " |"
    ]
    found.append("|" + "---|" * (len(heads) + 2))
    for lines in results:
        for labels in ("even", "ragged"):
            cells = {(c["head"], c["k"]): c for c in lines[1:] if c.get("labels") == labels and "cannot" not in c}
            row = ["; ".join(short(cells[head, k]) for k in (1, 2, 8)) if (head, 1) in cells else "–" for head in heads]
            if set(row) != {"–"}:
                found.append(f"| {lines[0]['peer']} | {names[labels]} | " + " | ".join(row) + " |")
    return "\n".join(found)


def notes(results, names):
    found = []
    for lines in results:
        first = lines[0]
        versions = ", ".join(f"{k} {v}" for k, v in sorted(first["versions"].items()))
        found.append(f"- **{first['peer']}**: {versions or first.get('failed')}")
        why = {c.get("error") or c.get("cannot") for c in lines[1:]} - {None}
        asked = {c["cannot"] for c in lines[1:] if "cannot" in c}
        ran = any("cosine" in c for c in lines[1:])
        found += [f"  - `{one}`" for one in sorted(why - asked)] + (
            [] if ran else [f"  - {one}" for one in sorted(asked)]
        )
    return names["notes"] + "\n\n" + "\n".join(found)


def scripts(folder):
    """A line a trainer: its scripts, by head, labels and k."""
    lines = {}
    for path in sorted(folder.glob("*.py")):
        name, _, cell = path.stem.partition("-")
        lines.setdefault(name, []).append(f"[{cell}](../benchmarks/{folder.name}/{path.name})")
    return "\n".join(f"- {name}: {', '.join(found)}" for name, found in lines.items())


def page(results, folder, chinese):
    names = NAMES_ZH if chinese else NAMES
    main = table(results, HEADS[:5], names, chinese)
    contrast = table(results, HEADS[5:], names, chinese)
    if chinese:
        return f"""# 谁的更新是整批的更新？
八行，无 dropout 的极小模型，学习率为 1 的朴素 SGD，一次更新：不切，或切成 2、8 个微批。比较的是权重的移动量
与八行所有标签之均值的梯度（尽可能用 float64）。每格依次是 k = 1、2、8：`exact`（余弦与范数比与 1 相差不到 1e-6），
否则是“范数比, 余弦”。分类与问答每行只有一个标签，“参差”就是七行、最后一个微批较短。

{main}

带批内负样本的损失另成一类：它没有“逐行之和”，普通的累积看不到别的微批里的负样本；缓存梯度的写法是精确的。

{contrast}

{notes(results, names)}

## 自己看
每个不精确的格子都有一个十来行的脚本，在装有该训练器的任何机器上都能重现：

{scripts(folder)}

在自己的环境里：`jieyue verify trainer NAME`（加 `--scripts FOLDER` 会写出这些脚本）。
本页由 `python benchmarks/trainers.py` 写成，数据在
[trainers.jsonl](../benchmarks/results/trainers.jsonl)。
这个问题在别处：transformers#35203、#37766、#38448、#47688，NeMo Automodel#3829。
"""
    return f"""# Whose update is the undivided batch's?
Eight rows, tiny models without dropout, plain SGD at rate 1, one update: undivided, or in 2 or 8 micro-batches. Compared: what the
weights moved by, and the gradient of the mean over all labels of the eight rows, in float64 where the trainer allows it.
A cell has k = 1, 2, 8 in turn: `exact` (cosine and norm ratio within 1e-6 of 1), else "norm ratio, cosine". Classes and answers
have one label a row; ragged are then seven rows, with a short last micro-batch.

{main}

Losses with in-batch negatives are another kind: they are no sum over rows, so plain accumulation does not see the negatives of the
other micro-batches; cached gradients are exact.

{contrast}

{notes(results, names)}

## See for yourself
Every cell that is not exact has a script of a dozen lines, which shows it on any machine with that trainer:

{scripts(folder)}

In an environment of your own: `jieyue verify trainer NAME` (with `--scripts FOLDER` it writes those scripts). This page is written by
`python benchmarks/trainers.py`; its data are [trainers.jsonl](../benchmarks/results/trainers.jsonl). The question elsewhere:
transformers#35203, #37766, #38448, #47688, NeMo Automodel#3829.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=INSTALLS, default=list(INSTALLS))
    parser.add_argument(
        "--work", type=Path, help="where the environments are made and kept; default: a temporary folder"
    )
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--scripts", type=Path, default=ROOT / "benchmarks" / "trainer_scripts")
    parser.add_argument("--write", action="store_true", help="the pages alone, from the results that are kept")
    given = parser.parse_args()
    kept = read_results()
    if not given.write:
        with tempfile.TemporaryDirectory() as aside:
            for name in given.peers:
                kept[name] = lines_of(name, given.work or Path(aside))
                sys.stderr.write(f"{name}: {len(kept[name]) - 1} cells\n")
                lines = [json.dumps(line) for one in INSTALLS if one in kept for line in kept[one]]
                RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    results = [kept[name] for name in INSTALLS if name in kept]
    folder = given.scripts
    for old in folder.glob("*.py"):
        old.unlink()
    for lines in results:
        write_scripts(TrainerCheck.of(lines[0]["peer"], lines), folder)
    (given.docs / "trainers.md").write_text(page(results, folder, False), encoding="utf-8")
    (given.docs / "trainers.zh.md").write_text(page(results, folder, True), encoding="utf-8")


if __name__ == "__main__":
    main()
