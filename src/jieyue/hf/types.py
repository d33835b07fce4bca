"""transformers' types under our names, for annotations alone: rooms above name a tokenizer without importing transformers."""

from __future__ import annotations

from transformers import PretrainedConfig as Config
from transformers import PreTrainedModel as Model
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers import TrainerControl as Control
from transformers import TrainingArguments as Arguments

__all__ = ["Arguments", "Config", "Control", "Model", "Tokenizer"]
