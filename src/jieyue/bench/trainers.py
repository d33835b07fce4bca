"""Whose update is the undivided batch's? A trainer that is installed here, on tiny models, heads, labels and numbers of pieces.

The cells and how they are run: ``hf.peers``. Here is what a cell's two numbers say, and a script of a dozen lines for each cell that
is not exact, which shows the same on any machine with that trainer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jieyue.errors import InputError
from jieyue.hf.peers import PEERS, run
from jieyue.json_values import Facts
from jieyue.report import Report

__all__ = ["TrainerCheck", "script_of", "verdict", "verify_trainer", "write_scripts"]

_CLOSE = 1e-6  # heads that compute their loss in float32 round to about 3e-8


@dataclass(frozen=True)
class TrainerCheck:
    """``versions``: of what ran; ``cells``: as ``hf.peers`` gives them, those that cannot be asked left out."""

    name: str
    versions: Mapping[str, str] = field(default_factory=dict)
    cells: tuple[Facts, ...] = ()

    @classmethod
    def of(cls, name: str, lines: Iterable[Facts]) -> TrainerCheck:
        """From the lines of a run, here or elsewhere."""
        first, *cells = list(lines)
        return cls(name, first["versions"], tuple(cell for cell in cells if "cannot" not in cell))

    @property
    def exact(self) -> bool:
        """Whether every cell that could be asked is."""
        return bool(self.cells) and all(verdict(cell) == "exact" for cell in self.cells)

    def report(self) -> Report:
        """The cells as a table."""
        report = Report(f"{self.name}: is its update the undivided batch's?")
        versions = report.section("Versions")
        for package, version in sorted(self.versions.items()):
            versions.fact(package, version)
        section = report.section("Cells")
        rows = [
            (c["head"], c["labels"], c["k"], _number(c, "cosine"), _number(c, "ratio"), verdict(c)) for c in self.cells
        ]
        section.table(("head", "labels", "pieces", "cosine", "norm ratio", "verdict"), rows)
        return report


def verify_trainer(name: str) -> TrainerCheck:
    """Runs every cell of a trainer of ``hf.peers.PEERS`` that is installed here, about half a minute; ``InputError`` otherwise."""
    if name not in PEERS:
        raise InputError("verify trainer", repr(name), f"one of {', '.join(PEERS)}")
    lines = run(name)
    first = next(lines)
    if first["versions"][PEERS[name][0]] == "not installed":
        raise InputError("verify trainer", f"{name} that is not installed", "it", f"pip install {PEERS[name][0]}")
    return TrainerCheck.of(name, [first, *lines])


def verdict(cell: Facts) -> str:
    """In words: exact, how many times too large or small, turned, or the error."""
    if "error" in cell:
        return f"does not run: {cell['error']}"
    straight, ratio = abs(1 - cell["cosine"]) < _CLOSE, cell["ratio"]
    if not ratio:
        return "no move"
    if straight and abs(1 - ratio) < _CLOSE:
        return "exact"
    size = f"{ratio:.3g} times the norm"
    return size if straight else f"turned (cosine {cell['cosine']:.3f}), {size}"


def _number(cell: Facts, name: str) -> str:
    return f"{cell[name]:.6f}" if name in cell else ""


_MODELS = {
    "causal": "GPT2LMHeadModel(GPT2Config(vocab_size=23, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))",
    "masked": "BertForMaskedLM(BertConfig(**sizes))",
    "classification": "BertForSequenceClassification(BertConfig(**sizes, num_labels=3))",
    "tokens": "BertForTokenClassification(BertConfig(**sizes, num_labels=3))",
    "answer": "BertForQuestionAnswering(BertConfig(**sizes))",
}
_ROW = {
    "classification": '"labels": ids[i][0] % 3',
    "answer": '"start_positions": ids[i][0] % 5, "end_positions": 5 + ids[i][1] % 5',
}
_STEPS = {
    "transformers": """from transformers import Trainer, TrainingArguments
args = TrainingArguments("out", max_steps=1, per_device_train_batch_size={micro}, gradient_accumulation_steps={k}, learning_rate=1.0,
    optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, weight_decay=0.0, report_to=[], use_cpu=True, save_strategy="no")
Trainer(model, args, train_dataset=rows).train()""",
    "accelerate": """from accelerate import Accelerator
accelerator = Accelerator(cpu=True, gradient_accumulation_steps={k})
data = torch.utils.data.DataLoader(rows, {micro}, collate_fn=put)
net, opt, data = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 1.0), data)
for batch in data:
    with accelerator.accumulate(net):
        accelerator.backward(net(**batch).loss), opt.step(), opt.zero_grad()""",
    "lightning": """import lightning
class Module(lightning.LightningModule):
    def __init__(self): super().__init__(); self.net = model
    def training_step(self, batch, index): return self.net(**batch).loss
    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), 1.0)
data = torch.utils.data.DataLoader(rows, {micro}, collate_fn=put)
trainer = lightning.Trainer(max_epochs=1, accumulate_grad_batches={k}, accelerator="cpu", precision="64-true", logger=False)
trainer.fit(Module(), data)""",
    "bert4torch": """from bert4torch.models import BaseModel
class Module(BaseModel):
    def __init__(self): super().__init__(); self.net = model
    def forward(self, batch): return self.net(**batch)
data = torch.utils.data.DataLoader(rows, {micro}, collate_fn=lambda some: (put(some), torch.zeros(len(some))))
module = Module()
module.compile(loss=lambda out, _: out.loss, optimizer=torch.optim.SGD(model.parameters(), 1.0), grad_accumulation_steps={k})
module.fit(data, epochs=1, steps_per_epoch=len(data))""",
}
_SCRIPT = """# {about}
import copy, torch
from transformers import *
sizes = dict(vocab_size=23, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
             hidden_dropout_prob=0, attention_probs_dropout_prob=0)
ids = [[(7 * i + 5 * j * j) % 22 + 1 for j in range(12)] for i in range({rows})]
rows = [{{"input_ids": ids[i], {row}}} for i in range({rows})]
put = lambda some: {{name: torch.tensor([row[name] for row in some]) for name in some[0]}}
torch.manual_seed(0)
model = {model}.double()
whole, before = copy.deepcopy(model), copy.deepcopy(model)
whole(**put(rows)).loss.backward()  # all rows at once: the mean over all labels
{step}
used = [p.grad is not None for p in whole.parameters()]
known = torch.cat([p.grad.flatten() for p, u in zip(whole.parameters(), used) if u])
moved = torch.cat([(a - b).flatten() for a, b, u in zip(before.parameters(), model.parameters(), used) if u])
print("norm ratio", float(moved.norm() / known.norm()), "cosine", float(moved @ known / moved.norm() / known.norm()))
"""


def script_of(cell: Facts) -> str | None:
    """What shows the cell's difference anywhere; None for a trainer that has no script here."""
    name, head, k = cell["peer"], cell["head"], cell["k"]
    if name not in _STEPS or head not in _MODELS:
        return None
    one_each = head in _ROW
    count = 7 if one_each and cell["labels"] == "ragged" else 8
    asked = "6" if cell["labels"] == "even" else "1 + (i * 5) % 11"
    target = "ids[i][j] % 3" if head == "tokens" else "ids[i][j]"
    row = _ROW.get(head) or f'"labels": [{target} if j >= 12 - ({asked}) else -100 for j in range(12)]'
    about = f"{name}, {head}, {cell['labels']} labels, {k} micro-batches: {verdict(cell)}"
    step = _STEPS[name].format(micro=-(-count // k), k=k)
    return _SCRIPT.format(about=about, rows=count, row=row, model=_MODELS[head], step=step)


def write_scripts(check: TrainerCheck, folder: Path) -> list[Path]:
    """A script for every cell that is not exact, ``NAME-head-labels-k.py``."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for cell in check.cells:
        script = None if "error" in cell or verdict(cell) == "exact" else script_of(cell)
        if script is not None:
            path = folder / f"{cell['peer']}-{cell['head']}-{cell['labels']}-{cell['k']}.py"
            path.write_text(script, encoding="utf-8")
            written.append(path)
    return written
