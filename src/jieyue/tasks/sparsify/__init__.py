"""Training a model that it can do with sparse attention, on plain text; what ``jieyue sparsify`` runs once it has chosen the layers."""
