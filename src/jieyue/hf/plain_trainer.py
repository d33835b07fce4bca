"""What transformers' own Trainer would do with the same rows: its gradient, for comparing with ours.

One optimizer step of an unchanged ``transformers.Trainer`` with ``gradient_accumulation_steps``; the loss is the model's
own. Since version 5 every head takes ``**kwargs``, which the Trainer reads as "divides by num_items_in_batch itself"; most
heads do not, so the gradient of k micro-batches comes out about k times too large, and turned where label counts differ
(transformers #47688).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

__all__ = ["train_by_trainer", "trainer_gradients"]


def trainer_gradients(model: nn.Module, batch: Mapping[str, Tensor], micro_batch: int) -> dict[str, Tensor]:
    """Name -> gradient just before the optimizer's step, of all rows of ``batch`` in micro-batches of so many rows.

    ``labels`` [rows, positions] as the model's own forward takes them. The weights are left as they are (learning rate 0).
    """
    rows = next(iter(batch.values())).shape[0]
    found: dict[str, Tensor] = {}

    class Catch(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            found.update({name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None})

    with tempfile.TemporaryDirectory(prefix="jieyue-") as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=1,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=-(-rows // micro_batch),
            learning_rate=0.0,
            optim="sgd",
            max_grad_norm=0.0,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            remove_unused_columns=False,
            use_cpu=next(model.parameters()).device.type == "cpu",
        )
        items: Any = [{name: value[row] for name, value in batch.items()} for row in range(rows)]
        _trained_in_order(model, arguments, items, [Catch()])
    model.zero_grad(set_to_none=True)
    return found


def train_by_trainer(
    model: nn.Module,
    batches: Sequence[Mapping[str, Tensor]],
    *,
    micro_batch: int,
    learning_rate: float,
    schedule: str = "constant",
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    max_grad_norm: float = 0.0,
) -> None:
    """Trains ``model`` in place by an unchanged Trainer: an update for each of ``batches``, in their order, cut into micro-batches.

    ``batches``: rows with ``labels`` as the model's own forward takes them, all of the same number of rows, which
    ``micro_batch`` divides (AssertionError otherwise). ``schedule``: transformers' name of it; AdamW of torch, float32.
    ``max_grad_norm`` 0: no clipping. Nothing is logged, nothing kept on disk.
    """
    counts = {next(iter(batch.values())).shape[0] for batch in batches}
    (rows,) = counts
    assert rows % micro_batch == 0, f"{rows} rows, micro-batches of {micro_batch}"
    items = [{name: value[row] for name, value in batch.items()} for batch in batches for row in range(rows)]
    with tempfile.TemporaryDirectory(prefix="jieyue-") as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=len(batches),
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=rows // micro_batch,
            learning_rate=learning_rate,
            optim="adamw_torch",
            lr_scheduler_type=schedule,
            warmup_steps=warmup_steps,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            remove_unused_columns=False,
            use_cpu=next(model.parameters()).device.type == "cpu",
        )
        _trained_in_order(model, arguments, items, [])
    model.zero_grad(set_to_none=True)


def _trained_in_order(
    model: nn.Module, arguments: TrainingArguments, items: Any, callbacks: list[TrainerCallback]
) -> None:
    trainer = _InOrder(model=model, args=arguments, train_dataset=items, callbacks=callbacks)
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    trainer.train()


class _InOrder(Trainer):
    """The Trainer, taking the rows as they come."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]
