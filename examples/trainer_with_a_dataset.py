"""transformers' Trainer in which one step is one effective batch: 8 rows, 2 at a time, the update of the 8 at once."""

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

import jieyue as jy


def rows(count: int) -> list[dict]:
    torch.manual_seed(0)
    ids = torch.randint(5, 100, (count, 12))
    return [{"input_ids": one, "attention_mask": torch.ones(12).long(), "labels": int(one[0] > 50)} for one in ids]


def main(epochs: int = 1) -> dict:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=100, num_labels=2, **sizes))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=2, gradient_accumulation_steps=4, num_train_epochs=epochs,
            learning_rate=1e-3, report_to=[], save_strategy="no", use_cpu=True,
        )  # fmt: skip
        trainer = jy.EffectiveBatchTrainer(
            model, arguments, train_dataset=rows(64), eval_dataset={"easy": rows(16), "same": rows(8)},
            compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())},
        )  # fmt: skip
        trainer.train()
        found = trainer.evaluate()
    print(found)
    return found


if __name__ == "__main__":
    main(epochs=20)
