"""Pictures drawn with matplotlib, as SVG whose colours follow the reader's mode and whose text stays text, or as PNG.

matplotlib is imported on the first drawing, never before. Roles are drawn in placeholder colours; afterwards the SVG's
style attributes are turned into classes (``f-ink``, ``k-s1``) and plain attributes, so a page may forbid inline styles.
Labels are laid out as Latin stand-ins of the same width and put in as text at the end: no font is needed for any
script, and nothing in a label is ever read as mathematics or as markup.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from jieyue.errors import InputError

from .colours import DARK, LIGHT
from .files import write_whole
from .hover import add_points
from .picture import Picture

__all__ = ["check_picture", "png", "save_picture", "svg", "svg_file"]

SPACE = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"
_PLACEHOLDERS = {role: f"#0000{number + 0xA0:02x}" for number, role in enumerate(LIGHT)}
_ROLES = {placeholder: role for role, placeholder in _PLACEHOLDERS.items()}
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jieyue",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "path.simplify": True,
    "axes.unicode_minus": False,
}


def svg(picture: Picture, *, width: int, prefix: str, titled: bool = False, told: bool = False) -> ElementTree.Element:
    """The picture as an ``<svg>`` element of ``width`` units; ``prefix`` makes its ids its own among others in a page.

    ``told``: its points tell their values where the pointer rests on them (``hover``).
    """
    from matplotlib import rc_context

    from .canvas import Canvas

    with rc_context(_SETTINGS):
        canvas = Canvas(picture, width=width, colours=_PLACEHOLDERS, titled=titled, stand_in=True)
        buffer = io.BytesIO()
        canvas.draw().savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    _put_words(root, canvas.words)
    _bare(root, prefix)
    if told:
        add_points(root, canvas.places())
    root.set("role", "img")
    root.set("aria-label", f"{picture.title}. {picture.summary()}")
    return root


def png(picture: Picture, *, width: int) -> bytes:
    """The picture in light colours, two dots a unit."""
    from matplotlib import font_manager, rc_context

    from .canvas import Canvas

    known = set(font_manager.get_font_names())
    wished = ["DejaVu Sans", "Noto Sans CJK SC", "Noto Sans SC", "PingFang SC", "Microsoft YaHei", "WenQuanYi Zen Hei"]
    with rc_context({**_SETTINGS, "font.family": [font for font in wished if font in known] or "DejaVu Sans"}):
        figure = Canvas(picture, width=width, colours=LIGHT, titled=True, stand_in=False).draw()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=144, facecolor=LIGHT["surface"])
    return buffer.getvalue()


def svg_file(picture: Picture, *, width: int) -> str:
    """A file of its own: title, ground and both palettes inside, so that it is readable on any page."""
    root = svg(picture, width=width, prefix="p", titled=True)
    root.set("xmlns", "http://www.w3.org/2000/svg")
    style = ElementTree.Element("style")
    light, dark = (
        "".join(f".f-{role}{{fill:{colour}}}.k-{role}{{stroke:{colour}}}" for role, colour in palette.items())
        for palette in (LIGHT, DARK)
    )
    style.text = (
        "*{stroke-linejoin:round}text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans','PingFang SC',"
        f"'Microsoft YaHei','Noto Sans CJK SC',sans-serif}}{light}@media (prefers-color-scheme:dark){{{dark}}}"
    )
    ground = ElementTree.Element("rect", {"width": "100%", "height": "100%", "rx": "8", "class": "f-surface"})
    root[:0] = [style, ground]
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def check_picture(path: str | Path) -> str:
    """The kind of picture that a name asks for, ".svg" or ".png"; ``InputError`` for another."""
    kind = Path(path).suffix.lower()
    if kind not in (".svg", ".png"):
        raise InputError(f"save_picture({str(path)!r}): expected a name that ends in .svg or .png")
    return kind


def save_picture(picture: Picture, path: str | Path, *, width: int = 720) -> Path:
    """Writes the picture with its title, as .svg (follows light and dark mode) or .png by the name's end. Returns the path."""
    path, kind = Path(path), check_picture(path)
    return write_whole(path, svg_file(picture, width=width) if kind == ".svg" else png(picture, width=width))


def _put_words(root: ElementTree.Element, words: list[str]) -> None:
    for group in root.iter(f"{SPACE}g"):
        name = re.fullmatch(r"word-(\d+)", group.get("id", ""))
        text = group.find(f".//{SPACE}text") if name else None
        if name and text is not None:
            text.text = words[int(name[1])]


def _bare(root: ElementTree.Element, prefix: str) -> None:
    """Without namespaces, metadata, inline styles and fixed sizes; ids prefixed, or dropped where nothing points at them."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{SPACE}metadata", f"{SPACE}style"):
                parent.remove(child)
    pointed = set()
    for element in root.iter():
        pointed |= {element.get(LINK, "").lstrip("#")}
        pointed |= set(re.findall(r"url\(#([^)]+)\)", element.get("clip-path", "")))
    for element in root.iter():
        element.tag = element.tag.removeprefix(SPACE)
        element.attrib = dict(_attributes(element.attrib, prefix, pointed))
        if element.tag != "text" and not (element.text or "").strip():
            element.text = None
        element.tail = None
    for fixed in ("width", "height", "version"):
        root.attrib.pop(fixed, None)


def _attributes(found: dict[str, str], prefix: str, pointed: set[str]) -> Iterator[tuple[str, str]]:
    classes = []
    for name, value in found.items():
        if name == "style":
            for rule in filter(None, (rule.strip() for rule in value.split(";"))):
                key, _, setting = (part.strip() for part in rule.partition(":"))
                if key in ("fill", "stroke") and setting in _ROLES:
                    classes.append(f"{key[0] if key == 'fill' else 'k'}-{_ROLES[setting]}")
                elif key == "font":
                    yield "font-size", setting.partition("px")[0].split()[-1]
                elif key == "font-size":
                    yield key, setting.removesuffix("px")
                elif key != "font-family":
                    yield key, setting
        elif name == "id":
            if value in pointed:
                yield "id", f"{prefix}-{value}"
        elif name == LINK:
            yield "href", f"#{prefix}-{value.lstrip('#')}"
        elif name == "clip-path":
            yield name, re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", value)
        else:
            yield name, re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), value)
    if classes:
        yield "class", " ".join(classes)
