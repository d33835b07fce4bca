"""ALBERT's one layer parted into layers of their own: the same outputs at that moment, more to learn with afterwards."""

import sys

import torch
from transformers import AlbertConfig, AlbertForMaskedLM

import jieyue as jy


def main(name: str | None = None) -> tuple[int, int]:
    if name is not None:
        model, _ = jy.load(name)
    else:
        torch.manual_seed(0)
        sizes = {"embedding_size": 16, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
        model = AlbertForMaskedLM(AlbertConfig(vocab_size=100, num_hidden_layers=4, **sizes)).eval()
    ids = torch.randint(5, 100, (2, 12))
    shared, before = model(ids).logits, sum(p.numel() for p in model.parameters())
    jy.unshare(model)
    after = sum(p.numel() for p in model.parameters())
    print(f"{before:,} parameters, {after:,} now; outputs unchanged: {torch.equal(model(ids).logits, shared)}")
    jy.reshare(model)  # the mean of the copies, for a folder as small as before
    assert sum(p.numel() for p in model.parameters()) == before
    return before, after


if __name__ == "__main__":
    main(*sys.argv[1:2])
