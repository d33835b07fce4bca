"""Reading comprehension; ``task.py`` is the whole of it, one file a reader (masked, span, prefix), ``settings.py`` what can
be chosen, ``rows.py`` training rows, ``asking.py`` a trained reader that is asked."""
