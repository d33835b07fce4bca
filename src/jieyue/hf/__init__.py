"""Everything that touches transformers: loading, our attention and activations inside its models, its Trainer.

Importing this folder registers our activation names, NEZHA and the names of our attention in transformers' tables, once.
"""

from . import activations, attention_call, masks, nezha, saved_attention

activations.register_all()
nezha.register_nezha()
saved_attention.answer_for_saved_names(attention_call.attention_forward, masks.asked_mask)
