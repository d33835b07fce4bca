"""Reading data, checking it, and the corpus that ships."""
