"""Titles for texts: ``task.py`` is the whole of it, ``writing.py`` rows and search, ``exposure.py`` the gap between reading
true words and one's own, ``settings.py`` what can be chosen."""
