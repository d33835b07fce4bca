"""Dialogue: ``task.py`` is the whole of it, ``rows.py`` tokens and rows, ``replies.py`` what is said, ``models.py`` who says
it, ``settings.py`` what can be chosen."""
