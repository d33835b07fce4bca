"""The few colours of reports and pictures, in light and dark, and the style rules that choose between them.

Everything drawn names a role ("ink", "s1"), never a colour; a page or a picture resolves the roles by the reader's
``prefers-color-scheme``. Text roles have a contrast of at least 4.5 against the ground they stand on (WCAG AA), series
colours at least 3; tests compute both.
"""

from __future__ import annotations

__all__ = ["DARK", "LIGHT", "SERIES", "contrast", "root_rules"]

LIGHT = {
    "ground": "#fbfaf7",
    "surface": "#ffffff",
    "ink": "#1f2328",
    "muted": "#5c6470",
    "line": "#e4e1d9",
    "accent": "#0b6b62",
    "right": "#17693a",
    "wrong": "#a8321f",
    "mark": "#d5efe6",
    "miss": "#f9e0da",
    "s1": "#0b7a70",
    "s2": "#c2570c",
    "s3": "#2f65b0",
    "s4": "#8a4f9e",
    "s5": "#6b7280",
    "s6": "#96700a",
}
DARK = {
    "ground": "#14171a",
    "surface": "#1b1f23",
    "ink": "#e6e4df",
    "muted": "#a2a9b3",
    "line": "#30363c",
    "accent": "#63cfc0",
    "right": "#7fd19b",
    "wrong": "#f39b86",
    "mark": "#15433c",
    "miss": "#57291f",
    "s1": "#4fc7b8",
    "s2": "#f0a05f",
    "s3": "#84b3f0",
    "s4": "#c8a2dc",
    "s5": "#a3aab5",
    "s6": "#d9bc5a",
}
SERIES = ("s1", "s2", "s3", "s4", "s5", "s6")


def root_rules() -> str:
    """The style rules that define ``--role`` for light and for dark readers."""

    def variables(palette: dict[str, str]) -> str:
        return "".join(f"--{role}:{colour};" for role, colour in palette.items())

    return f":root{{{variables(LIGHT)}}}\n@media (prefers-color-scheme:dark){{:root{{{variables(DARK)}}}}}\n"


def contrast(first: str, second: str) -> float:
    """Contrast of two colours, 1 to 21 (WCAG 2.2, "contrast ratio").

    >>> round(contrast("#000000", "#ffffff"), 3)
    21.0
    """

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)
