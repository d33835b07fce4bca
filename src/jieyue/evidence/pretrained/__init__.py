"""The claims of the articles that a pretrained model can serve, measured on a model's folder (``jieyue reproduce --weights``)."""
