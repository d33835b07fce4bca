"""From a model's scores to tokens: what may come next, and which of it is taken."""
