"""A batch of 32 rows in pieces of 4, in a plain loop: the gradient is the whole batch's, for rows of any lengths."""

import torch
from transformers import BertConfig, BertForMaskedLM

import jieyue as jy
from jieyue.training.objective import token_loss


def objective(model, batch):
    """The sum of the losses and the number of labels, never a mean: that is what makes pieces add up."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return token_loss(logits, batch["labels"])


def main(steps: int = 3) -> list[float]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForMaskedLM(BertConfig(vocab_size=100, **sizes))
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for _ in range(steps):
        ids = torch.randint(5, 100, (32, 20))
        mask = (torch.arange(20) < torch.randint(5, 21, (32, 1))).long()  # rows of different lengths
        batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
        optimizer.zero_grad()
        losses.append(float(jy.accumulate(objective, model, batch, micro_batch=4).mean()))
        optimizer.step()
    print(losses)
    return losses


if __name__ == "__main__":
    main(steps=100)
