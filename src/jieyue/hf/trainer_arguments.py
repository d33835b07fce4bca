"""Arguments of transformers' Trainer: our defaults, and those that would be asked for in vain, refused with what to do instead."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from transformers import TrainingArguments

from jieyue.errors import InputError

from .work import Work, check_rows

__all__ = ["asked_fsdp", "check_batches", "check_device", "check_obeyed", "training_arguments"]

_BY_WORK = {
    "num_train_epochs": "Work.batches holds all epochs",
    "per_device_train_batch_size": "Work.batches and micro_batch say it",
    "per_device_eval_batch_size": "micro_batch says it",
    "train_sampling_strategy": "Work.batches holds the order",
    "dataloader_drop_last": "leave short batches out of Work.batches",
    "data_seed": "Work.batches holds the order",
}
_NEVER = {
    "label_smoothing_factor": "smooth in the objective",
    "auto_find_batch_size": "an out-of-memory halves the micro-batch anyway",
    "ignore_data_skip": "a resumed run goes on with the batch that is due",
    "load_best_model_at_end": "evaluate the saved checkpoints instead",
    "batch_eval_metrics": "compute_metrics sees all predictions at once",
    "eval_accumulation_steps": "predictions are moved to the CPU piece by piece",
    "torch_empty_cache_steps": "an out-of-memory empties the cache anyway",
}


def training_arguments(folder: str | Path, *, steps: int, device: str = "cpu", **options: object) -> TrainingArguments:
    """transformers' own arguments with our defaults: nothing printed, nothing reported elsewhere, ``steps`` updates.

    ``options`` are any further ``TrainingArguments`` (learning_rate, warmup_steps, max_grad_norm, save_steps, seed, bf16).
    The schedule falls linearly over ``steps`` unless said otherwise; clipping is at norm 1.
    """
    settings: dict[str, object] = {
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
    return TrainingArguments(**cast(Any, settings | options))


def check_obeyed(args: TrainingArguments, from_dataset: bool) -> None:
    """``InputError`` for an argument that differs from its default and would change nothing.

    ``from_dataset``: batches are made from these arguments, which then obeys those that say how.
    """
    refused = _NEVER if from_dataset else _NEVER | _BY_WORK
    for field in fields(args):
        value = getattr(args, field.name)
        if field.name in refused and value != field.default:
            default = getattr(field.default, "value", field.default)
            raise InputError(field.name, repr(getattr(value, "value", value)), repr(default), refused[field.name])
    if args.gradient_accumulation_steps != 1 and not from_dataset:
        found = str(args.gradient_accumulation_steps)
        raise InputError("gradient_accumulation_steps", found, "1", "set micro_batch instead")


def check_device(args: TrainingArguments, fsdp_version: int | None) -> None:
    """Refuses several GPUs in one process, FSDP's first version, and FSDP on the CPU. ``fsdp_version``: None for no FSDP."""
    if args.n_gpu > 1:
        raise InputError("devices", f"{args.n_gpu} GPUs in one process", "one", "start with torchrun")
    if fsdp_version is None:
        return
    if fsdp_version != 2:  # the first one's flat parameters know no mesh: its ranks would not be seen
        do = "fsdp_config={'version': 2}, or accelerate launch --fsdp_version=2"
        raise InputError("fsdp", f"version {fsdp_version}", "version 2", do)
    if args.device.type == "cpu":
        raise InputError("fsdp", "a CPU", "a GPU", "accelerate would run DDP in its place; leave fsdp out")


def asked_fsdp(args: TrainingArguments) -> int | None:
    """The version of FSDP that is asked for, None without."""
    return int(dict(cast(Any, args.fsdp_config) or {}).get("version", 2)) if args.fsdp else None


def check_batches(args: TrainingArguments, work: Work) -> None:
    """Refuses rows without an index, empty batches, and a ``max_steps`` that is not their number."""
    check_rows("rows", work.rows)
    if not len(work.batches) or not all(len(batch) for batch in work.batches):
        raise InputError("batches", f"{len(work.batches)} lists, some empty", "a list of rows for each step")
    if work.in_backward and (args.fp16 or args.world_size > 1):
        found = "fp16" if args.fp16 else f"{args.world_size} processes"
        raise InputError("in_backward", found, "float32 or bf16 in one process", "leave in_backward out")
    if args.max_steps not in (-1, len(work.batches)):
        raise InputError("max_steps", str(args.max_steps), f"len(batches) = {len(work.batches)}")
