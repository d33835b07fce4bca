"""Text classification; ``task.py`` is the whole of it, ``settings.py`` what can be chosen."""
