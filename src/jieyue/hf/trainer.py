"""transformers' Trainer where one step is one effective batch: logging, checkpoints, resume and torchrun stay its own.

The Trainer's ``gradient_accumulation_steps`` multiplies the gradient for most heads (transformers #47688). Here a step
receives the whole effective batch, and ``training_step`` slices it with ``jieyue.training.accumulate``; so the update is
the undivided batch's, clipping and schedule happen once per update, and the logged loss is total/weight, nothing else.

One process: ``EffectiveBatchTrainer(...).train()``. Several: the same script under ``torchrun --nproc_per_node=2`` (or
``accelerate launch``): each process takes every second row of the same batches. On several machines:
``torchrun --nnodes=2 --nproc_per_node=4 --rdzv_backend=c10d --rdzv_endpoint=HOST:PORT script.py``.
"""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from transformers.trainer_utils import EvalPrediction, PredictionOutput, TrainOutput

from jieyue.budget import Plan
from jieyue.errors import InputError, check_known
from jieyue.tally import Tally
from jieyue.training.evaluation import measure_loss
from jieyue.training.microbatch import MicroBatch, RandomState
from jieyue.training.objective import Objective
from jieyue.training.ranks import Ranks
from jieyue.training.remedies.remedy import Remedied

from .checkpoints import RECORD, digests, intact_checkpoint, keep_best, keep_newest, read_record, room_for
from .head_loss import head_loss
from .interrupts import Interrupted, Interrupts
from .optimizers import make_optimizer
from .predictions import predict_rows
from .progress import Clock, Progress, Running, StepEnd
from .trainer_arguments import asked_fsdp, check_batches, check_device, check_obeyed, training_arguments
from .updates import Updates
from .work import Collate, Row, Share, Work, digest_of_rows, work_of

__all__ = ["EffectiveBatchTrainer", "Given", "Interrupted", "Progress", "Work", "training_arguments"]


class Given(TypedDict, total=False):
    """What ``EffectiveBatchTrainer`` takes by name, as transformers' Trainer does; and ``objective``, ``micro_batch``, ``held_out``.

    ``held_out`` is another name of ``eval_dataset``; ``objective`` and ``micro_batch``: as in ``Work``, for a ``train_dataset``.
    """

    train_dataset: Sequence[Row] | None
    eval_dataset: Sequence[Row] | Mapping[str, Sequence[Row]] | None
    held_out: Sequence[Row] | Mapping[str, Sequence[Row]] | None
    data_collator: Collate | None
    compute_metrics: Callable[[EvalPrediction], Mapping[str, float]] | None
    processing_class: PreTrainedTokenizerBase | None
    callbacks: Sequence[TrainerCallback]
    optimizers: tuple[torch.optim.Optimizer | None, LRScheduler | None]
    objective: Objective
    micro_batch: int | Plan | MicroBatch
    non_finite: str


class EffectiveBatchTrainer(Trainer):
    """A Trainer whose step is ``work.batches[step]``, whatever the micro-batch.

    Either ``work``, or what a user of transformers' Trainer has (``train_dataset``, ``data_collator``): then batches, epochs and
    effective batch come from ``args`` and the loss is that of the model's head (``head_loss``) or ``objective``.

    ``eval_dataset`` (or ``held_out``): rows, or several sets by name, for ``evaluate()`` and ``eval_strategy``.
    ``compute_metrics`` sees all predictions of a set. ``progress`` is called with a ``Progress`` after each
    update, on the first process alone. Ctrl-C leaves a checkpoint and raises ``Interrupted`` (a KeyboardInterrupt that names
    it): at once in one process, after the running update in several; a second Ctrl-C stops without one. Checkpoints appear
    whole or not at all, with a digest of every file, keep the micro-batch after an out-of-memory, and refuse to continue on
    other batches or rows. An optimizer with modes (schedule-free ones) is put into evaluation before evaluating and saving.

    Refused: FSDP's first version, FSDP on the CPU (accelerate would run DDP in its place), DataParallel, DeepSpeed,
    ``load_best_model_at_end``, and arguments that would change nothing (``trainer_arguments``), such as
    ``gradient_accumulation_steps`` beside ``work``.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        work: Work | None = None,
        *,
        progress: Callable[[Progress], None] | None = None,
        **given: Unpack[Given],
    ) -> None:
        check_known("EffectiveBatchTrainer", given, Given.__annotations__)
        check_device(args, asked_fsdp(args))
        check_obeyed(args, from_dataset=work is None)
        from_dataset = work is None
        collator = given.get("data_collator")
        if work is None:
            work = _work_given(args, given)
        elif extra := {"train_dataset", "data_collator", "objective", "micro_batch"} & given.keys():
            raise InputError("EffectiveBatchTrainer", f"work= and {min(extra)}=", "one of the two")
        check_batches(args, work)
        args = copy.copy(args)
        args.max_steps, args.gradient_accumulation_steps = len(work.batches), 1
        max_grad_norm, args.max_grad_norm = args.max_grad_norm, 0.0 if work.in_backward else args.max_grad_norm
        held_out = given.get("eval_dataset")
        super().__init__(
            model=model,
            args=args,
            data_collator=cast(Any, collator),
            train_dataset=cast(Any, work.rows),
            eval_dataset=cast(Any, given.get("held_out") if held_out is None else held_out),
            processing_class=given.get("processing_class"),
            compute_metrics=cast(Any, given.get("compute_metrics")),
            callbacks=list(given.get("callbacks", ())),
            optimizers=cast(Any, given.get("optimizers", (None, None))),
        )
        for printer in (PrinterCallback, ProgressCallback):
            self.remove_callback(printer)
        if self.is_fsdp_enabled:
            check_device(args, self.accelerator.state.fsdp_plugin.fsdp_version)
        if self.is_deepspeed_enabled:
            raise InputError("deepspeed", "a configuration", "DDP (torchrun) or FSDP")
        self.work = work
        self.collate: Collate = self._get_collator_with_removed_columns(work.collate) if from_dataset else work.collate
        self.micro = work.micro_batch if isinstance(work.micro_batch, MicroBatch) else MicroBatch(work.micro_batch)
        self.updates = Updates(work, self.micro, max_grad_norm)
        self.last_checkpoint: Path | None = None
        self._evaluated_at_once = args.per_device_eval_batch_size if from_dataset else None
        self._window = self._run = Tally(0.0, 0)
        self._rows_digest: str | None = None
        self._running = Running(
            Clock(), Interrupts(), self.micro, lambda: Ranks(self.model_wrapped), self._get_learning_rate
        )
        self._before_step: RandomState | None = None
        self._staging: Path | None = None
        self._most = args.save_total_limit
        self.add_callback(StepEnd(self._running, progress))

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Trains to the last batch; ``resume_from_checkpoint``: a folder, or True for the newest intact one (none: from the start)."""
        folder = Path(str(resume_from_checkpoint)) if resume_from_checkpoint else None
        if resume_from_checkpoint is True:
            folder = intact_checkpoint(Path(str(self.args.output_dir)))
        self._window = self._run = Tally(0.0, 0)
        self._running.clock = Clock()
        if folder is not None:
            self._restore(folder)
        interrupts = self._running.interrupts
        self._most, self.args.save_total_limit = (
            self.args.save_total_limit,
            None,
        )  # transformers' own takes other folders too
        try:
            with interrupts:
                output = super().train(None if folder is None else str(folder), trial, ignore_keys_for_eval)
        except KeyboardInterrupt:
            self.is_in_train = False
            if self._before_step is None or self.args.world_size > 1:
                raise
            self._before_step.restore()
            self._save_checkpoint(cast(nn.Module, self.model), None)
            raise Interrupted(self.last_checkpoint) from None
        finally:
            self.args.save_total_limit = self._most
        self._switch("eval")
        if self._most == 1 and self.args.should_save:
            keep_best(Path(str(self.args.output_dir)), self.state.best_model_checkpoint)
        if interrupts.asked:
            raise Interrupted(self.last_checkpoint)
        return output._replace(training_loss=output.metrics.get("train_loss", output.training_loss))

    def training_step(self, model: nn.Module, inputs: Mapping[str, Tensor], *_: object, **__: object) -> Tensor:
        model.train()
        self._switch("train")
        if isinstance(self.work.objective, Remedied):  # remedies that follow a schedule
            self.work.objective.step = self.state.global_step
        self._before_step = RandomState(self.args.device)
        if self.work.in_backward:
            tally = self.updates.moved(model, inputs, self.optimizer)
        else:
            with self._running.interrupts.immediate(self.args.world_size == 1):
                tally = self.updates.accumulated(model, inputs, self.accelerator.backward, self.args.fp16)
        self._before_step = None
        self._window, self._run = self._window + tally, self._run + tally
        loss = float(tally.mean()) if tally.weight else float("nan")
        self._running.clock.count(inputs, len(self.work.batches[self.state.global_step]), loss)
        return torch.tensor(loss if tally.weight else 0.0, device=self.args.device)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Loss of held-out rows (``eval_dataset``, else the trainer's): every row once, however many processes share them.

        Returns and logs ``eval_loss`` = total/weight and ``eval_labels`` = weight, and what ``compute_metrics`` says; a
        micro-batch at a time in each process. Several sets by name: ``eval_NAME_loss`` and so on.
        """
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(rows, str):
            rows = cast(Mapping[str, Any], self.eval_dataset)[rows]
        if isinstance(rows, Mapping):
            sets = {name: self.evaluate(one, ignore_keys, f"{metric_key_prefix}_{name}") for name, one in rows.items()}
            return {name: value for found in sets.values() for name, value in found.items()}
        if rows is None or not len(rows):
            raise InputError("evaluate", "no held-out rows", "EffectiveBatchTrainer(..., held_out=rows)")
        self._switch("eval")
        found = self._measured(rows) if self.compute_metrics is None else self._predicted(rows)[1]
        named = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(named))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        return named

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Logits and labels of the rows, in their order, and their loss (and ``compute_metrics``) where they have labels."""
        if test_dataset is None or not len(test_dataset):
            raise InputError("predict", "no rows", "at least one")
        self._switch("eval")
        found, numbers = self._predicted(test_dataset)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in numbers.items()}
        self.control = self.callback_handler.on_predict(self.args, self.state, self.control, metrics)
        return PredictionOutput(cast(Any, found.said), cast(Any, found.labels), metrics)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            trained = self.model if model is None else model
            assert trained is not None
            self.optimizer = make_optimizer(trained, self.args)
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader[Row]:
        """One item = one effective batch, of which each process keeps every world_size-th row."""
        workers = self.args.dataloader_num_workers
        return DataLoader(
            cast(Any, self.work.rows),
            batch_sampler=[list(batch) for batch in self.work.batches],
            collate_fn=Share(self.collate, self.args.process_index, self.args.world_size),
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            generator=torch.Generator().manual_seed(self.args.seed),  # else each start of a loader draws from ours
        )

    def floating_point_ops(self, inputs: Mapping[str, object]) -> int:
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's own log with the loss as total/weight over the steps since the last one, and speeds of this run."""
        if "loss" in logs and self._window.weight:
            logs["loss"] = float(self._window.mean())
            self._window = Tally(0.0, 0)
        if "train_loss" in logs and self._run.weight:
            logs["train_loss"] = float(self._run.mean())
        if "train_samples_per_second" in logs and "train_runtime" in logs:
            clock, seconds = self._running.clock, max(logs["train_runtime"], 1e-9)
            logs["train_samples_per_second"] = round(clock.rows / seconds, 3)
            logs["train_steps_per_second"] = round(clock.steps / seconds, 3)
        super().log(logs, start_time)

    def _measured(self, rows: Sequence[Row]) -> dict[str, float]:
        share, whole = Share(self.collate, self.args.process_index, self.args.world_size), Tally(0.0, 0)
        step = (self._evaluated_at_once or self.micro.rows) * self.args.world_size
        for start in range(0, len(rows), step):
            batch = share([rows[place] for place in range(start, min(start + step, len(rows)))])
            whole += measure_loss(self.work.objective, self.model_wrapped, batch, micro_batch=self.micro)
        return _numbers(whole)

    def _predicted(self, rows: Sequence[Row]) -> Any:
        found = predict_rows(
            self.model_wrapped,
            rows,
            objective=self.work.objective,
            collate=self.collate,
            at_once=self._evaluated_at_once or self.micro.rows,
            label_names=self.label_names,
        )
        numbers = {} if found.labels is None else _numbers(found.tally)
        if self.compute_metrics is not None and found.labels is not None:
            asked = EvalPrediction(predictions=cast(Any, found.said), label_ids=cast(Any, found.labels))
            numbers |= dict(self.compute_metrics(asked))
        return found, numbers

    def _switch(self, mode: str) -> None:
        """ "train" or "eval", for an optimizer that has such modes (schedule-free ones: other weights in each)."""
        change = getattr(self.optimizer, mode, None)
        if callable(change):
            change()

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Written beside its place and moved there whole, so that a kill in between leaves no half checkpoint."""
        name = f"checkpoint-{self.state.global_step}"
        root = Path(str(self.args.output_dir))
        self._staging = root / f".{name}.partial"
        self._switch("eval")
        try:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            with room_for(root):
                super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            self._name_the_best(root)
            if self.args.should_save:
                self.state.save_to_json(str(self._staging / name / "trainer_state.json"))
                self._write_record(self._staging / name)
                shutil.rmtree(root / name, ignore_errors=True)
                (self._staging / name).replace(root / name)
                self._staging.rmdir()
                keep_newest(root, self._most, self.state.best_model_checkpoint)
        finally:
            if self.args.should_save:  # what a full disk or Ctrl-C left of it
                shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None
        self.accelerator.wait_for_everyone()
        self.last_checkpoint = root / name

    def _name_the_best(self, root: Path) -> None:
        """The best checkpoint where it will stand, not where it was written; the one from before where the best was not saved."""
        best = f"checkpoint-{self.state.best_global_step}"
        here = self.state.best_global_step == self.state.global_step
        if self.state.best_global_step and (here or (root / best).is_dir()):
            self.state.best_model_checkpoint = str(root / best)

    def _write_record(self, folder: Path) -> None:
        window = self._window.detach()
        record = {
            "micro_batch": self.micro.rows,
            "micro_tokens": self.micro.tokens,
            "halvings": self.micro.halvings,
            "skipped": self.micro.skipped,
            "batches": self.work.digest(),
            "rows": self._digest_of_rows(),
            "window": [window.total, window.weight],
            "previous_norm": None if self.updates.clip is None else self.updates.clip.norm,
            "files": digests(folder),
        }
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def _digest_of_rows(self) -> str:
        if self._rows_digest is None:
            self._rows_digest = digest_of_rows(self.work, self.collate)
        return self._rows_digest

    def _restore(self, folder: Path) -> None:
        record = cast(dict[str, Any], read_record(folder))
        same_rows = "rows" not in record or record["rows"] == self._digest_of_rows()
        if record["batches"] != self.work.digest() or not same_rows:
            do = "same data, seed and sizes"
            raise InputError("resume", "other rows or batches than the checkpoint's", "the same", do)
        own = f"rng_state_{self.args.process_index}.pth" if self.args.world_size > 1 else "rng_state.pth"
        if not (folder / own).is_file():
            warnings.warn(
                f"{folder} was written by another number of processes: dropout goes on otherwise", stacklevel=3
            )
        if record["micro_batch"] < self.micro.rows:
            self.micro.rows, self.micro.tokens = record["micro_batch"], record["micro_tokens"]
        self.micro.halvings, self.micro.skipped = record["halvings"], record["skipped"]
        self._window = Tally(*record["window"])
        if self.updates.clip is not None:
            self.updates.clip.norm = record.get("previous_norm")


def _numbers(whole: Tally) -> dict[str, float]:
    if not whole.weight:
        raise InputError("evaluate", "rows without any counted label", "at least one")
    return {"loss": float(whole.mean()), "labels": float(whole.weight)}


def _work_given(args: TrainingArguments, given: Given) -> Work:
    dataset, collator = given.get("train_dataset"), given.get("data_collator")
    if dataset is None:
        raise InputError("EffectiveBatchTrainer", "neither work= nor train_dataset=", "one of them")
    collate = cast(Collate, default_data_collator) if collator is None else collator
    objective = given.get("objective", head_loss)
    return work_of(dataset, collate, args, objective, given.get("micro_batch"), given.get("non_finite", "stop"))
