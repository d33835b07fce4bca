"""Masked-LM training; ``task.py`` is the whole of it, ``masking.py`` how tokens are hidden, ``settings.py`` what can be chosen."""
