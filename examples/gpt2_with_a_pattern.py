"""A pattern in place of full attention, in a GPT-2, and text from it. Name a folder or a hub name to use trained weights."""

import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import jieyue as jy


def main(name: str | None = None) -> torch.Tensor:
    if name is not None:
        model, tokenizer = jy.load(name)
        ids = tokenizer("Long ago", return_tensors="pt")["input_ids"]
    else:
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=500)).eval()
        ids = torch.randint(5, 500, (1, 40))
    full = model(ids).logits
    print(jy.use(model, attention="first(4)+local(16)"))
    moved = (model(ids).logits - full).detach().abs().max()
    print(f"largest change of a logit: {float(moved):.4f}")
    written = model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)
    print(written[0, ids.shape[1] :].tolist())
    jy.use(model, attention=None)
    assert torch.equal(model(ids).logits, full)  # taken off again, nothing is left
    return written


if __name__ == "__main__":
    main(*sys.argv[1:2])
