"""The articles' claims as experiments: declared, measured with several seeds, judged by intervals, written as a page."""
