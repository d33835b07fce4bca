"""Everything that touches transformers: loading, our attention and activations inside its models, its Trainer.

Importing this folder registers our activation names in transformers' table, once.
"""

from . import activations

activations.register_all()
