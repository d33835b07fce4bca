"""In what encoding a file is written: its byte order mark, UTF-8, or the likeliest of seven older code pages, named.

Likeliest: the code page whose text has the largest share of its language's commonest characters among those above ASCII.
A choice that is not clear of the next one, or whose text has few common characters, says so (``is_sure``).
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass

from jieyue.errors import InputError

__all__ = ["Encoding", "find_encoding", "is_damaged", "undamaged"]

SAMPLE = 2**16
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_DOCUMENTS = ((b"%PDF-", "a PDF"), (b"{\\rtf", "an RTF document"), (b"\xd0\xcf\x11\xe0", "a document of Office"))
_CONTROLS = bytes({*range(9), *range(14, 27), *range(28, 32)})  # that no text has; escape begins ISO 2022
_SIMPLIFIED = frozenset(
    "的一是在了不和有大中人上为个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定行学"
    "法所民得经十三之进着等部度家电力里如水化高自二理起小物现实加量都两体制机当使点从业本去天没好看这那你什么很吗吧还想"
)
_TRADITIONAL = frozenset(
    "的一是在了不和有大中人上為個國我以要他時來用們生到作地於出就分對成會可主發年動同工也能下過子說產種面而方後多定行學"
    "法所民得經十三之進著等部度家電力裡里如水化高自二理起小物現實加量都兩體制機當使點從業本去天沒好看這那你什麼很嗎吧還想"
)
_HANGUL = frozenset(
    "이다는의에을가하고지를로기한도사은리서대어자인시나있그정해여라일들부수보주스아장제전원상구게과요면니유조만안거습고네"
    "으비오무소마트우연했적성내세금용데진까동신되야경작것오좋때후저없생물산회간람말방본못바문물할통체단와드여"
)
_WESTERN = frozenset("àâäáãåæçéèêëíìîïñóòôöõøœúùûüýÿßÀÂÄÁÅÆÇÉÈÊËÍÎÏÑÓÔÖØŒÚÛÜ«»“”‘’–—…€£§°¿¡·•®©™")
_PUNCTUATION = frozenset("，。！？、：；“”‘’（）《》「」…—～·")


@dataclass(frozen=True, slots=True)
class Encoding:
    """``name``: as Python's codecs call it; ``mark``: bytes of a byte order mark; ``is_sure``: whether it is beyond doubt."""

    name: str
    mark: int = 0
    is_sure: bool = True


def find_encoding(start: bytes, name: str, *, wanted: str | None = None, whole: bool = True) -> Encoding:
    """The encoding of a file that begins with ``start`` (the ``whole`` file or its first block); ``wanted`` decides where given.

    A file most of whose characters above ASCII are whole UTF-8 is UTF-8 with damaged places. ``InputError`` for an unknown
    ``wanted``, for bytes that no encoding explains, and for documents and
    pictures. Cost: the first 64 KiB are decoded by each code page.
    """
    if wanted is not None:
        return _named(start, wanted)
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return Encoding(encoding, len(mark))
    for mark, kind in _DOCUMENTS:
        if start.startswith(mark):
            raise InputError(name, kind, "plain text, or a table as text", "save it as text first")
    zeros = start[: SAMPLE // 16].count(0)
    if zeros * 5 > len(start[: SAMPLE // 16]):  # text without zero characters: every other byte of ASCII in UTF-16
        return Encoding("utf-16-le" if start[1:2] == b"\0" else "utf-16-be", is_sure=False)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start, final=whole)
        return Encoding("utf-8")
    except UnicodeDecodeError as error:
        broken_at = error.start
    sample = start[max(0, broken_at - SAMPLE // 2) :][:SAMPLE]
    text = sample.decode("utf-8", "replace")
    if text.count("\ufffd") <= sum(char > "\x7f" and char != "\ufffd" for char in text):
        return Encoding("utf-8")
    return _likeliest(sample, name, broken_at)


def _named(start: bytes, wanted: str) -> Encoding:
    try:
        "".encode(wanted)
        found = codecs.lookup(wanted).name
    except (LookupError, ValueError):
        raise InputError(
            "encoding", repr(wanted), "one that Python knows: utf-8, gb18030, big5, shift_jis, euc_kr, cp1252, …"
        ) from None
    if found == "utf-8-sig":
        found = "utf-8"
    for mark, encoding in _MARKS:
        if start.startswith(mark) and found in (encoding, encoding.removesuffix("-le").removesuffix("-be")):
            return Encoding(encoding, len(mark))
    return Encoding(found)


def _likeliest(sample: bytes, name: str, broken_at: int) -> Encoding:
    if 50 * (len(sample) - len(sample.translate(None, _CONTROLS))) > len(sample):
        do = "give plain text, or name its encoding: --encoding"
        raise InputError(name, "bytes of a binary file, or of UTF-16 without its mark", "text", do)
    scores = []
    for encoding, score in _CODE_PAGES:
        text, damaged = _decoded(sample, encoding)
        high = [char for char in text if char > "\x7f"]
        if high and damaged * 50 <= len(high):
            scores.append((score(text, high) / len(high), encoding))
    if not scores:
        raise InputError(name, f"bytes that are not UTF-8 at byte {broken_at}", "text", "name its encoding: --encoding")
    best, encoding = max(scores, key=lambda one: one[0])
    second = max((share for share, other in scores if other != encoding), default=0.0)
    return Encoding(encoding, is_sure=best >= 0.2 and best >= 1.5 * second)


def _decoded(sample: bytes, encoding: str) -> tuple[str, int]:
    """The sample as text, and how many places do not decode; a character cut at either end is not one."""
    lines = sample[: sample.rfind(b"\n") + 1] if len(sample) == SAMPLE else sample
    whole = sample if lines.isascii() else lines  # one long line, perhaps behind a header, is all that there is
    text = whole.decode(encoding, "replace")
    return text, text.count("\ufffd")


def _share_of(common: frozenset[str]) -> Callable[[str, list[str]], float]:
    return lambda text, high: sum(char in common for char in high) + 0.5 * sum(char in _PUNCTUATION for char in high)


def _japanese(text: str, high: list[str]) -> float:
    kana = sum("\u3041" <= char <= "\u30fe" for char in high)
    narrow = sum("\uff61" <= char <= "\uff9f" for char in high)  # what other code pages look like as Shift-JIS
    return kana + 0.5 * sum(char in _PUNCTUATION for char in high) - 2 * narrow if kana else 0.0


def _western(text: str, high: list[str]) -> float:
    """Single letters with accents inside words; two in a row are rather half of something else."""
    points = 0.0
    for before, char, after in zip(" " + text, text, text[1:] + " ", strict=False):
        if char > "\x7f":
            alone = before < "\x80" and after < "\x80"
            points += (0.7 if alone else -0.2) if char in _WESTERN else (0.1 if alone else -0.1)
    return points


_CODE_PAGES: tuple[tuple[str, Callable[[str, list[str]], float]], ...] = (
    ("gb18030", _share_of(_SIMPLIFIED)),
    ("big5", _share_of(_TRADITIONAL)),
    ("cp932", _japanese),
    ("euc_jp", _japanese),
    ("cp949", _share_of(_HANGUL)),
    ("cp1252", _western),
)


def is_damaged(text: str) -> bool:
    """Whether the text holds what cannot be written: bytes that did not decode, or half of a surrogate pair.

    >>> is_damaged("a\\udcff"), is_damaged("节约")
    (True, False)
    """
    if text.isascii():
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def undamaged(encoding: str) -> str:
    """The error handler under which a file of this encoding is decoded, so that one bad byte breaks one record, not the file."""
    return "surrogatepass" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
