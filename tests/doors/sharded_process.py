"""Run by ``torchrun`` on GPUs: trains the model of test_trainer.py under FSDP2 through our Trainer. Argument: folder."""

import os
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from jieyue.hf.trainer import EffectiveBatchTrainer, Work, training_arguments

STEPS = 4
OPTIONS = {"learning_rate": 1e-2, "seed": 11, "optim": "sgd", "max_grad_norm": 0.5, "save_strategy": "no"}
SHARDED = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]}}


class Watched(TrainerCallback):
    """Sees after every update whether the parameters are in shards."""

    def __init__(self):
        self.sharded = []

    def on_step_end(self, args, state, control, model=None, **_):
        self.sharded.append(all(isinstance(p, DTensor) for p in model.parameters()))


def run(folder, device, **options):
    from test_trainer import collate, model, objective, rows
    from two_processes import batches

    work = Work(objective=objective, rows=rows(), collate=collate, batches=batches(STEPS), micro_batch=1)
    watched = Watched()
    arguments = training_arguments(folder, steps=STEPS, device=device, **OPTIONS, **options)
    trainer = EffectiveBatchTrainer(model(0.0).double(), arguments, work, callbacks=[watched])
    trainer.train()
    return trainer, watched


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    trained, watched = run(folder / "sharded", "cuda", **SHARDED)
    assert watched.sharded == [True] * STEPS, watched.sharded
    whole = {name: p.full_tensor().detach().cpu() for name, p in trained.model.named_parameters()}
    if int(os.environ["RANK"]) == 0:
        torch.save(whole, folder / "out.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
