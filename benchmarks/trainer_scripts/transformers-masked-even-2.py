# transformers, masked, even labels, 2 micro-batches: 2 times the norm
import copy, torch
from transformers import *
sizes = dict(vocab_size=23, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
             hidden_dropout_prob=0, attention_probs_dropout_prob=0)
ids = [[(7 * i + 5 * j * j) % 22 + 1 for j in range(12)] for i in range(8)]
rows = [{"input_ids": ids[i], "labels": [ids[i][j] if j >= 12 - (6) else -100 for j in range(12)]} for i in range(8)]
put = lambda some: {name: torch.tensor([row[name] for row in some]) for name in some[0]}
torch.manual_seed(0)
model = BertForMaskedLM(BertConfig(**sizes)).double()
whole, before = copy.deepcopy(model), copy.deepcopy(model)
whole(**put(rows)).loss.backward()  # all rows at once: the mean over all labels
from transformers import Trainer, TrainingArguments
args = TrainingArguments("out", max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=1.0,
    optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, weight_decay=0.0, report_to=[], use_cpu=True, save_strategy="no")
Trainer(model, args, train_dataset=rows).train()
used = [p.grad is not None for p in whole.parameters()]
known = torch.cat([p.grad.flatten() for p, u in zip(whole.parameters(), used) if u])
moved = torch.cat([(a - b).flatten() for a, b, u in zip(before.parameters(), model.parameters(), used) if u])
print("norm ratio", float(moved.norm() / known.norm()), "cosine", float(moved @ known / moved.norm() / known.norm()))
