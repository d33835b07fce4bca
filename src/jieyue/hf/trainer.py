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
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from jieyue.budget import Plan
from jieyue.errors import InputError, message
from jieyue.tally import Tally
from jieyue.training.accumulation import accumulate
from jieyue.training.evaluation import measure_loss
from jieyue.training.microbatch import MicroBatch, RandomState
from jieyue.training.objective import Objective

from .interrupts import Interrupted, Interrupts
from .optimizers import make_optimizer
from .progress import Clock, Progress, StepEnd

__all__ = ["EffectiveBatchTrainer", "Interrupted", "Progress", "Work", "training_arguments"]

_RECORD = "jieyue_training.json"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done: ``batches[s]`` lists the rows of step s's effective batch, over all epochs, decided beforehand.

    ``rows``: encoded examples; ``collate``: a list of them -> tensors with one entry per row, without drawing random
    numbers (draw in the objective, whose random state is restored on resume). ``micro_batch``: rows, a Plan, or a
    ``MicroBatch`` that also trims padding or bounds tokens. ``non_finite`` and ``allow``: as in ``accumulate``.
    """

    objective: Objective
    rows: Sequence[Any]
    collate: Callable[[list[Any]], Mapping[str, Tensor]]
    batches: Sequence[Sequence[int]]
    micro_batch: int | Plan | MicroBatch
    non_finite: str = "stop"
    allow: Sequence[str] = ()

    def digest(self) -> str:
        """Identifies the batches, so that a run resumes on the data it was started with."""
        text = json.dumps([len(self.rows), [list(map(int, batch)) for batch in self.batches]])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def training_arguments(folder: str | Path, *, steps: int, device: str = "cpu", **options: Any) -> TrainingArguments:
    """transformers' own arguments with our defaults: nothing printed, nothing reported elsewhere, ``steps`` updates.

    ``options`` are any further ``TrainingArguments`` (learning_rate, warmup_steps, max_grad_norm, save_steps, seed, bf16).
    The schedule falls linearly over ``steps`` unless said otherwise; clipping is at norm 1.
    """
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": steps,
        "use_cpu": device == "cpu",
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        "dataloader_pin_memory": device != "cpu",
        "save_strategy": "steps",
        "save_steps": max(1, steps),
        "save_total_limit": 2,
        "logging_steps": 1,
        "optim": "adamw_torch_fused",
    }
    return TrainingArguments(**(settings | options))


class EffectiveBatchTrainer(Trainer):
    """A Trainer whose step is ``work.batches[step]``, whatever the micro-batch.

    ``held_out``: rows for ``evaluate()`` (and ``eval_strategy``). ``progress`` is called with a ``Progress`` after each
    update, on the first process alone. Ctrl-C leaves a checkpoint and raises ``Interrupted`` (a KeyboardInterrupt that names
    it): at once in one process, after the running update in several; a second Ctrl-C stops without one. Checkpoints appear
    whole or not at all, keep the micro-batch after an out-of-memory, and refuse to continue on other batches.

    Refused: FSDP's first version, FSDP on the CPU (accelerate would run DDP in its place), DataParallel, DeepSpeed,
    ``gradient_accumulation_steps`` > 1, ``load_best_model_at_end``.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        work: Work,
        *,
        held_out: Sequence[Any] | None = None,
        progress: Callable[[Progress], None] | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
    ) -> None:
        _check(args, work)
        args = copy.copy(args)
        args.max_steps = len(work.batches)
        super().__init__(
            model=model,
            args=args,
            train_dataset=cast(Any, work.rows),
            eval_dataset=cast(Any, held_out),
            callbacks=list(callbacks),
            optimizers=optimizers,
        )
        for printer in (PrinterCallback, ProgressCallback):
            self.remove_callback(printer)
        if self.is_fsdp_enabled:
            _check_fsdp(args, self.accelerator.state.fsdp_plugin.fsdp_version)
        if self.is_deepspeed_enabled:
            raise InputError(message("deepspeed", "a configuration", "DDP (torchrun) or FSDP"))
        self.work = work
        self.micro = work.micro_batch if isinstance(work.micro_batch, MicroBatch) else MicroBatch(work.micro_batch)
        self.last_checkpoint: Path | None = None
        self._window = self._run = Tally(0.0, 0)
        self._clock = Clock()
        self._interrupts = Interrupts()
        self._before_step: RandomState | None = None
        self._staging: Path | None = None
        self.add_callback(StepEnd(self, progress))

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Trains to the last batch; ``resume_from_checkpoint``: a folder, or True for the newest (none: from the start)."""
        folder = resume_from_checkpoint or None
        if folder is True:
            folder = (
                get_last_checkpoint(str(self.args.output_dir)) if Path(str(self.args.output_dir)).is_dir() else None
            )
        self._window = self._run = Tally(0.0, 0)
        self._clock = Clock()
        if folder is not None:
            self._restore(Path(str(folder)))
        try:
            with self._interrupts:
                output = super().train(folder, trial, ignore_keys_for_eval)
        except KeyboardInterrupt:
            self.is_in_train = False
            if self._before_step is None or self.args.world_size > 1:
                raise
            self._before_step.restore()
            self._save_checkpoint(cast(nn.Module, self.model), None)
            raise Interrupted(self.last_checkpoint) from None
        if self._interrupts.asked:
            raise Interrupted(self.last_checkpoint)
        return output._replace(training_loss=output.metrics.get("train_loss", output.training_loss))

    def training_step(self, model: nn.Module, inputs: Mapping[str, Tensor], *_: Any, **__: Any) -> Tensor:
        model.train()
        schedule_free = getattr(self.optimizer, "train", None)
        if callable(schedule_free):
            schedule_free()
        if hasattr(self.work.objective, "step"):  # remedies that follow a schedule
            self.work.objective.step = self.state.global_step
        self._before_step = RandomState(self.args.device)
        with self._interrupts.immediate(self.args.world_size == 1):
            tally = accumulate(
                self.work.objective,
                model,
                inputs,
                micro_batch=self.micro,
                allow=self.work.allow,
                non_finite="allow" if self.args.fp16 else self.work.non_finite,
                backward=self.accelerator.backward,
            )
        self._before_step = None
        self._window, self._run = self._window + tally, self._run + tally
        self._clock.count(inputs, float(tally.mean()))
        return torch.tensor(float(tally.mean()), device=self.args.device)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Loss of held-out rows (``eval_dataset``, else ``held_out``): every row once, however many processes share them.

        Returns and logs ``eval_loss`` = total/weight and ``eval_labels`` = weight; a micro-batch at a time in each process.
        """
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if rows is None or not len(rows):
            raise InputError(message("evaluate", "no held-out rows", "EffectiveBatchTrainer(..., held_out=rows)"))
        rank, world = self.args.process_index, self.args.world_size
        share, whole = _Share(self.work.collate, rank, world), Tally(0.0, 0)
        step = self.micro.rows * world
        for start in range(0, len(rows), step):
            batch = share([rows[place] for place in range(start, min(start + step, len(rows)))])
            whole += measure_loss(self.work.objective, self.model_wrapped, batch, micro_batch=self.micro)
        found = {f"{metric_key_prefix}_loss": float(whole.mean()), f"{metric_key_prefix}_labels": float(whole.weight)}
        self.log(dict(found))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            trained = self.model if model is None else model
            assert trained is not None
            self.optimizer = make_optimizer(trained, self.args)
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader:
        """One item = one effective batch, of which each process keeps every world_size-th row."""
        return DataLoader(
            cast(Dataset[Any], self.work.rows),
            batch_sampler=[list(batch) for batch in self.work.batches],
            collate_fn=_Share(self.work.collate, self.args.process_index, self.args.world_size),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator().manual_seed(self.args.seed),  # else each start of a loader draws from ours
        )

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's own log with the loss as total/weight over the steps since the last one."""
        if "loss" in logs and self._window.weight:
            logs["loss"] = float(self._window.mean())
            self._window = Tally(0.0, 0)
        if "train_loss" in logs and self._run.weight:
            logs["train_loss"] = float(self._run.mean())
        super().log(logs, start_time)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Written beside its place and moved there whole, so that a kill in between leaves no half checkpoint."""
        name = f"checkpoint-{self.state.global_step}"
        root = Path(str(self.args.output_dir))
        self._staging = root / f".{name}.partial"
        keep, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._write_record(self._staging / name)
                shutil.rmtree(root / name, ignore_errors=True)
                (self._staging / name).replace(root / name)
                self._staging.rmdir()
                _keep_newest(root, keep)
        finally:
            self._staging, self.args.save_total_limit = None, keep
        self.accelerator.wait_for_everyone()
        self.last_checkpoint = root / name

    def _write_record(self, folder: Path) -> None:
        window = self._window.detach()
        record = {
            "micro_batch": self.micro.rows,
            "micro_tokens": self.micro.tokens,
            "halvings": self.micro.halvings,
            "skipped": self.micro.skipped,
            "batches": self.work.digest(),
            "window": [window.total, window.weight],
        }
        (folder / _RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def _restore(self, folder: Path) -> None:
        path = folder / _RECORD
        if not path.is_file():
            raise InputError(message("resume", f"{folder} without {_RECORD}", "a checkpoint written by this trainer"))
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["batches"] != self.work.digest():
            raise InputError(
                message(
                    "resume", "other rows or batches than the checkpoint's", "the same", "same data, seed and sizes"
                )
            )
        if record["micro_batch"] < self.micro.rows:
            self.micro.rows, self.micro.tokens = record["micro_batch"], record["micro_tokens"]
        self.micro.halvings, self.micro.skipped = record["halvings"], record["skipped"]
        self._window = Tally(*record["window"])


class _Share:
    """Collates the whole effective batch, so that all processes pad alike, and keeps this process's rows."""

    def __init__(self, collate: Callable[[list[Any]], Mapping[str, Tensor]], rank: int, world: int) -> None:
        self.collate, self.rank, self.world = collate, rank, world

    def __call__(self, rows: list[Any]) -> dict[str, Tensor]:
        batch = self.collate(rows)
        return {name: value[self.rank :: self.world] for name, value in batch.items()}


def _check_fsdp(args: TrainingArguments, version: int) -> None:
    if version != 2:  # the first one's flat parameters know no mesh: its ranks would not be seen
        do = "fsdp_config={'version': 2}, or accelerate launch --fsdp_version=2"
        raise InputError(message("fsdp", f"version {version}", "version 2", do))
    if args.device.type == "cpu":
        raise InputError(message("fsdp", "a CPU", "a GPU", "accelerate would run DDP in its place; leave fsdp out"))


def _check(args: TrainingArguments, work: Work) -> None:
    if args.fsdp:
        _check_fsdp(args, int(dict(cast(Any, args.fsdp_config) or {}).get("version", 2)))
    if not len(work.batches) or not all(len(batch) for batch in work.batches):
        raise InputError(message("batches", f"{len(work.batches)} lists, some empty", "a list of rows for each step"))
    if args.gradient_accumulation_steps != 1:
        found = str(args.gradient_accumulation_steps)
        raise InputError(message("gradient_accumulation_steps", found, "1", "set micro_batch instead"))
    if args.load_best_model_at_end:
        raise InputError(message("load_best_model_at_end", "True", "False", "evaluate the saved checkpoints instead"))
    if args.n_gpu > 1:
        raise InputError(message("devices", f"{args.n_gpu} GPUs in one process", "one", "start with torchrun"))
    if args.max_steps not in (-1, len(work.batches)):
        raise InputError(message("max_steps", str(args.max_steps), f"len(batches) = {len(work.batches)}"))


def _keep_newest(root: Path, count: int | None) -> None:
    found = sorted(root.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for old in found[:-count] if count else []:
        shutil.rmtree(old, ignore_errors=True)
