"""One update of other people's trainers, to be compared with the undivided batch's. Runs alone, in an environment of theirs.

    python -P peers.py NAME       one JSON line a cell: head x labels x k, cosine and norm ratio in float64, or the error

A cell: a tiny model without dropout, eight rows, plain SGD at rate 1, one update of k micro-batches. What the weights moved by is
compared with the gradient of the mean over all labels of the eight rows. ``ragged``: label counts differ from row to row
(classes and answers have one a row: then seven rows, a short last micro-batch). This file imports nothing of jieyue but in its
own cell, so that it runs where jieyue does not.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = ["HEADS", "KS", "PEERS", "cells", "run"]

HEADS = ("causal", "masked", "classification", "tokens", "answer", "contrastive")
KS = (1, 2, 8)
LABELS = ("even", "ragged")
_WIDTH, _WORDS, _CLASSES = 12, 23, 3
Row = dict[str, Any]


def model_of(head: str) -> nn.Module:
    """A tiny model with that head, in float64, without dropout."""
    import transformers as t

    torch.manual_seed(0)
    if head == "causal":
        quiet: dict[str, Any] = {
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
        return t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=_WORDS, n_embd=8, n_layer=1, n_head=2, n_positions=32, **quiet)
        ).double()
    kinds = {
        "masked": "BertForMaskedLM", "classification": "BertForSequenceClassification",
        "tokens": "BertForTokenClassification", "answer": "BertForQuestionAnswering",
    }  # fmt: skip
    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes |= {"vocab_size": _WORDS, "max_position_embeddings": 32, "num_labels": 2 if head == "answer" else _CLASSES}
    config = t.BertConfig(**sizes, **quiet)
    return getattr(t, kinds[head])(config).double()


def rows_of(head: str, labels: str) -> list[Row]:
    """Eight rows of twelve tokens (seven where each has one label and the last micro-batch is to be short)."""
    one_each = head in ("classification", "answer")
    generator = torch.Generator().manual_seed(1)
    found: list[Row] = []
    for number in range(7 if one_each and labels == "ragged" else 8):
        ids = torch.randint(1, _WORDS, (_WIDTH,), generator=generator)
        row: Row = {"input_ids": ids.tolist(), "attention_mask": [1] * _WIDTH}
        if head == "classification":
            row["labels"] = int(ids[0]) % _CLASSES
        elif head == "answer":
            row |= {"start_positions": int(ids[0]) % 5, "end_positions": 5 + int(ids[1]) % 5}
        else:
            asked = 6 if labels == "even" else 1 + (number * 5) % 11
            target = ids % _CLASSES if head == "tokens" else ids
            row["labels"] = [int(target[at]) if at >= _WIDTH - asked else -100 for at in range(_WIDTH)]
        found.append(row)
    return found


def collate(rows: Sequence[Row]) -> dict[str, Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def undivided(head: str, rows: Sequence[Row]) -> list[Tensor | None]:
    """The gradient of the mean over all labels of all rows, by its definition."""
    model, batch = model_of(head), collate(rows)
    loss: Any
    if head == "answer":
        out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        pairs = [(out.start_logits, batch["start_positions"]), (out.end_logits, batch["end_positions"])]
        loss = sum(nn.functional.cross_entropy(logits, place) for logits, place in pairs) / 2
    else:
        labels = batch.pop("labels")
        logits = model(**batch).logits
        if head == "causal":
            logits, labels = logits[:, :-1], labels[:, 1:]
        kept = labels != -100
        loss = -logits[kept].log_softmax(-1).gather(1, labels[kept][:, None]).sum() / kept.sum()
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True))


def compare(
    before: Sequence[Tensor], after: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> tuple[float, float]:
    """(cosine, norm of the move over that of the gradient)."""
    moved = torch.cat([(b - a).detach().double().flatten() for b, a in zip(before, after, strict=True)])
    known = torch.cat([
        torch.zeros(b.numel(), dtype=torch.float64) if g is None else g.double().flatten()
        for b, g in zip(before, gradients, strict=True)
    ])  # fmt: skip
    size = float(moved.norm() * known.norm())
    return float(moved @ known) / size if size else 0.0, float(moved.norm() / known.norm())


class CannotAskError(Exception):
    """The trainer has no way to be asked for this cell."""


def _arguments(folder: str, rows: Sequence[Row], k: int) -> dict[str, Any]:
    return {
        "output_dir": folder, "max_steps": 1, "per_device_train_batch_size": -(-len(rows) // k), "gradient_accumulation_steps": k,
        "learning_rate": 1.0, "lr_scheduler_type": "constant", "optim": "sgd", "max_grad_norm": 0.0, "weight_decay": 0.0,
        "report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no",
    }  # fmt: skip


def transformers_trainer(model: nn.Module, rows: list[Row], head: str, k: int) -> None:
    from transformers import Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(**_arguments(folder, rows, k), remove_unused_columns=False)
        Trainer(model, args, train_dataset=rows, data_collator=collate).train()


def trl_sft(model: nn.Module, rows: list[Row], head: str, k: int) -> None:
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    if head != "causal":
        raise CannotAskError("SFTTrainer trains causal language models")
    words = {f"w{n}": n for n in range(_WORDS)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0", eos_token="w0", unk_token="w0")
    said = [{"input_ids": r["input_ids"], "completion_mask": [int(x != -100) for x in r["labels"]]} for r in rows]
    with tempfile.TemporaryDirectory() as folder:
        settings = _arguments(folder, rows, k) | {"completion_only_loss": True, "bf16": False, "max_length": None}
        args = SFTConfig(**settings, gradient_checkpointing=False)
        SFTTrainer(model, args=args, train_dataset=Dataset.from_list(said), processing_class=tokenizer).train()


def accelerate_accumulate(model: nn.Module, rows: list[Row], head: str, k: int) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=k)
    loader: Any = torch.utils.data.DataLoader(cast(Any, rows), batch_size=-(-len(rows) // k), collate_fn=collate)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            optimizer.zero_grad()


def lightning_trainer(model: nn.Module, rows: list[Row], head: str, k: int) -> None:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, index: int) -> Any:
            return self.model(**batch).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1.0)

    loader: Any = torch.utils.data.DataLoader(cast(Any, rows), batch_size=-(-len(rows) // k), collate_fn=collate)
    with tempfile.TemporaryDirectory() as folder:
        quiet = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        trainer = lightning.Trainer(
            max_epochs=1,
            accumulate_grad_batches=k,
            accelerator="cpu",
            precision="64-true",
            default_root_dir=folder,
            **quiet,
        )
        trainer.fit(Module(), loader)


def bert4torch_model(model: nn.Module, rows: list[Row], head: str, k: int) -> None:
    from bert4torch.models import BaseModel

    class Module(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *given: Any, **named: Any) -> Any:
            return self.model(**(named or given[0]))

    def batches(some: Sequence[Row]) -> Any:
        return collate(some), torch.zeros(len(some))

    loader: Any = torch.utils.data.DataLoader(cast(Any, rows), batch_size=-(-len(rows) // k), collate_fn=batches)
    module = Module()
    module.compile(
        loss=lambda out, _: out.loss, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), grad_accumulation_steps=k
    )
    module.fit(loader, epochs=1, steps_per_epoch=len(loader), verbose=0)


def setfit_trainer(model: nn.Module, rows: list[Row], head: str, k: int) -> None:
    import setfit

    accepted = setfit.TrainingArguments.__dataclass_fields__
    if "gradient_accumulation_steps" not in accepted and k > 1:
        raise CannotAskError("setfit.TrainingArguments has no gradient_accumulation_steps: k = 1 only")
    raise CannotAskError("SetFit samples its own pairs: no batch of eight rows can be handed to it")


def jieyue_trainer(model: nn.Module, rows: list[Row], head: str, k: int) -> None:
    from transformers import TrainingArguments

    from jieyue.hf.trainer import EffectiveBatchTrainer

    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(**_arguments(folder, rows, k), remove_unused_columns=False)
        EffectiveBatchTrainer(model, args, train_dataset=rows, data_collator=collate).train()


PEERS: dict[str, tuple[str, Callable[[nn.Module, list[Row], str, int], None]]] = {
    "jieyue": ("jieyue", jieyue_trainer),
    "transformers": ("transformers", transformers_trainer),
    "trl": ("trl", trl_sft),
    "accelerate": ("accelerate", accelerate_accumulate),
    "lightning": ("lightning", lightning_trainer),
    "sentence-transformers": ("sentence-transformers", transformers_trainer),
    "setfit": ("setfit", setfit_trainer),
    "bert4torch": ("bert4torch", bert4torch_model),
}


def sentence_transformers(labels: str, k: int, cached: bool) -> tuple[float, float]:
    """In-batch negatives of eight pairs, undivided and in k pieces: plain accumulation, or the cached loss."""
    import sentence_transformers as st
    from datasets import Dataset

    try:
        from sentence_transformers import losses
        from sentence_transformers.models import Pooling, Transformer
    except ImportError:  # since version 6
        from sentence_transformers.sentence_transformer import losses
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", *(f"w{n}" for n in range(30))]
    backend = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    long = [4 if labels == "even" else 1 + n % 5 for n in range(8)]
    texts = [[" ".join(f"w{(7 * n + 3 * i + side) % 30}" for i in range(long[n])) for n in range(8)] for side in (0, 1)]

    def build(folder: str) -> Any:
        torch.manual_seed(0)
        sizes: dict[str, Any] = {
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 8,
        }
        BertModel(
            BertConfig(vocab_size=len(names), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes)
        ).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return st.SentenceTransformer(modules=[Transformer(folder), Pooling(8)], device="cpu").double()

    with tempfile.TemporaryDirectory() as folder:
        model = build(folder)
        before = [p.detach().clone() for p in model.parameters()]
        embedded = [model(model.tokenize(side))["sentence_embedding"] for side in texts]
        unit = [nn.functional.normalize(one, dim=-1) for one in embedded]
        loss = nn.functional.cross_entropy(20.0 * unit[0] @ unit[1].T, torch.arange(8))
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        pairs = Dataset.from_dict({"anchor": texts[0], "positive": texts[1]})
        arguments = _arguments(folder, range(8), 1 if cached else k)  # type: ignore[arg-type]
        args = st.SentenceTransformerTrainingArguments(**arguments)
        kind: Any = losses.CachedMultipleNegativesRankingLoss if cached else losses.MultipleNegativesRankingLoss
        criterion = kind(model, **({"mini_batch_size": -(-8 // k)} if cached else {}))
        st.SentenceTransformerTrainer(model=model, args=args, train_dataset=pairs, loss=criterion).train()
        return compare(before, list(model.parameters()), gradients)


def _cell(name: str, head: str, labels: str, k: int) -> tuple[float, float]:
    if head.startswith("contrastive"):
        if name != "sentence-transformers":
            raise CannotAskError("in-batch negatives are sentence-transformers' business")
        return sentence_transformers(labels, k, cached=head.endswith("cached"))
    if name == "sentence-transformers":
        raise CannotAskError("sentence-transformers trains embeddings")
    rows, model = rows_of(head, labels), model_of(head)
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    PEERS[name][1](model, rows, head, k)
    return compare(before, trained, undivided(head, rows))


def cells(name: str, heads: Sequence[str] = HEADS) -> Iterator[dict[str, Any]]:
    """The cells of a trainer, one after another: ``cosine`` and ``ratio``, or ``error``; a cell that cannot be asked is left out."""
    wanted = [one for one in heads if one != "contrastive"]
    if "contrastive" in heads and name == "sentence-transformers":
        wanted += ["contrastive", "contrastive, cached"]
    for head in wanted:
        for labels in LABELS:
            for k in KS:
                cell: dict[str, Any] = {"peer": name, "head": head, "labels": labels, "k": k}
                try:
                    with contextlib.redirect_stdout(sys.stderr):
                        cell["cosine"], cell["ratio"] = _cell(name, head, labels, k)
                except CannotAskError as error:
                    cell["cannot"] = str(error)
                except Exception as error:  # what another's trainer raises is what the table prints
                    cell["error"] = f"{type(error).__name__}: {error}"[:300]
                yield cell


def run(name: str) -> Iterator[dict[str, Any]]:
    """First the versions, then the cells."""
    versions = {}
    for package in {"torch", "transformers", PEERS[name][0]}:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    yield {"peer": name, "versions": versions}
    yield from cells(name)


if __name__ == "__main__":
    for found in run(sys.argv[1]):
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
