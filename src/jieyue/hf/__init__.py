"""Everything that touches transformers: loading, our attention and activations inside its models, its Trainer.

Importing this folder registers our activation names and NEZHA in transformers' tables, once.
"""

from . import activations, nezha

activations.register_all()
nezha.register_nezha()
