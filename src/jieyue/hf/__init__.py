"""Everything that touches transformers: loading, our attention and activations inside its models, its Trainer."""
