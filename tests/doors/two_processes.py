"""Run by ``torchrun``: trains the model of test_trainer.py and writes rank 0's weights. Arguments: folder, steps."""

import os
import sys
import warnings
from pathlib import Path

import torch
from test_trainer import ROWS, collate, model, objective, rows
from transformers.utils import logging

from jieyue.hf.trainer import EffectiveBatchTrainer, Work, training_arguments

logging.disable_progress_bar()
logging.set_verbosity_error()
warnings.simplefilter("ignore")
RANK = int(os.environ.get("RANK", 0))


def batches(steps):
    """Ragged: the last batches have an odd row, and a single row, so that a rank has fewer rows or none."""
    generator = torch.Generator().manual_seed(3)
    sizes = (5, 4, 3, 1)
    return [torch.randperm(ROWS, generator=generator)[: sizes[step % 4]].tolist() for step in range(steps)]


def tight(model, batch):
    """Runs out of memory above one row, on the second rank alone."""
    if RANK == 1 and len(batch["labels"]) > 1:
        raise torch.OutOfMemoryError("out of memory")
    return objective(model, batch)


def run(folder, steps, resume=False):
    work = Work(objective=tight, rows=rows(), collate=collate, batches=batches(steps), micro_batch=3)
    options = {"learning_rate": 1e-2, "save_steps": 2, "seed": 11, "optim": "sgd", "max_grad_norm": 0.5}
    arguments = training_arguments(folder, steps=steps, **options)
    trainer = EffectiveBatchTrainer(model(0.0).double(), arguments, work, held_out=rows()[:7])
    trainer.train(resume_from_checkpoint=resume)
    trainer.held_out = trainer.evaluate()
    return trainer


if __name__ == "__main__":
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    trained = run(folder, steps)
    losses = [entry["loss"] for entry in trained.state.log_history if "loss" in entry]
    if RANK == 0:
        torch.save(
            {
                "weights": trained.model.state_dict(),
                "losses": losses,
                "rows": trained.micro.rows,
                "held_out": trained.held_out,
            },
            folder / "out.pt",
        )
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    os._exit(0)  # everything is written; gloo's threads may outlive the interpreter and abort it
