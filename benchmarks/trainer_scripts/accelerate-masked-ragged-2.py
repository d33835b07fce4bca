# accelerate, masked, ragged labels, 2 micro-batches: turned (cosine 1.000), 1 times the norm
import copy, torch
from transformers import *
sizes = dict(vocab_size=23, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
             hidden_dropout_prob=0, attention_probs_dropout_prob=0)
ids = [[(7 * i + 5 * j * j) % 22 + 1 for j in range(12)] for i in range(8)]
rows = [{"input_ids": ids[i], "labels": [ids[i][j] if j >= 12 - (1 + (i * 5) % 11) else -100 for j in range(12)]} for i in range(8)]
put = lambda some: {name: torch.tensor([row[name] for row in some]) for name in some[0]}
torch.manual_seed(0)
model = BertForMaskedLM(BertConfig(**sizes)).double()
whole, before = copy.deepcopy(model), copy.deepcopy(model)
whole(**put(rows)).loss.backward()  # all rows at once: the mean over all labels
from accelerate import Accelerator
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
data = torch.utils.data.DataLoader(rows, 4, collate_fn=put)
net, opt, data = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 1.0), data)
for batch in data:
    with accelerator.accumulate(net):
        accelerator.backward(net(**batch).loss), opt.step(), opt.zero_grad()
used = [p.grad is not None for p in whole.parameters()]
known = torch.cat([p.grad.flatten() for p, u in zip(whole.parameters(), used) if u])
moved = torch.cat([(a - b).flatten() for a, b, u in zip(before.parameters(), model.parameters(), used) if u])
print("norm ratio", float(moved.norm() / known.norm()), "cosine", float(moved @ known / moved.norm() / known.norm()))
