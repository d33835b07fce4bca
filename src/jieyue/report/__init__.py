"""Facts, tables, pictures and examples, gathered as values and rendered as text, Markdown, JSON and a page of HTML.

>>> report = Report("Reading · tiny preset")
>>> _ = report.section("Quality").fact("exact match", 0.71, "share", how="SQuAD rule, 1000 questions", interval=(0.68, 0.74))
>>> print(report.text())
Reading · tiny preset
=====================
<BLANKLINE>
Quality
-------
exact match  71.0% [68.0%, 74.0%]  SQuAD rule, 1000 questions

``report.save(folder)`` writes ``report.json`` (lossless: ``Report.load(folder) == report``) and ``report.html`` (one
file, opens offline, asks nothing of the network). Nothing here computes: what is shown was measured elsewhere.
"""

from .amounts import Estimate, format_value
from .card import model_card
from .document import Report, Saved
from .drawing import save_picture
from .files import write_whole
from .picture import Axis, Picture, Series
from .values import Column, Example, Examples, Fact, Note, Section, Table

__all__ = [
    "Axis",
    "Column",
    "Estimate",
    "Example",
    "Examples",
    "Fact",
    "Note",
    "Picture",
    "Report",
    "Saved",
    "Section",
    "Series",
    "Table",
    "format_value",
    "model_card",
    "save_picture",
    "write_whole",
]
