"""Text as Chinese and English readers see it: normal forms, what counts as CJK, joining without stray spaces."""

import re
import unicodedata
from collections.abc import Iterable

__all__ = ["folded", "is_cjk", "is_presegmented", "join_pieces", "normalize", "units", "without_controls"]

_CJK_RANGES = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2FA1F),
    (0x3040, 0x30FF),
    (0xAC00, 0xD7AF),
)
_FREQUENT = (*((chr(ord(char) + 0xFEE0), char) for char in ",!?:;()~"), ("\u3000", " "), ("…", "..."))


def is_cjk(char: str) -> bool:
    """True for ideographs, kana and hangul: the scripts whose single characters scores count.

    >>> [is_cjk(c) for c in "节a，。"]
    [True, False, False, False]
    """
    point = ord(char)
    return any(low <= point <= high for low, high in _CJK_RANGES)


def normalize(text: str) -> str:
    """NFKC, newlines as ``\\n``, no byte order mark.

    >>> normalize("\\ufeffＡＢＣ\\r\\n１２")
    'ABC\\n12'
    """
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if text.isascii():
        return text
    for wide, narrow in _FREQUENT:  # what NFKC makes of nearly all Chinese text; checking the rest costs a tenth of it
        text = text.replace(wide, narrow)
    return text if unicodedata.is_normalized("NFKC", text) else unicodedata.normalize("NFKC", text)


def folded(text: str) -> str:
    """What two texts are compared by: NFKC, case folding, no spaces.

    >>> folded("Ｔｈｅ  Pier\\n９")
    'thepier9'
    """
    return "".join((text if text.isascii() else normalize(text)).casefold().split())


def units(text: str) -> list[str]:
    """Words for scripts with spaces, single characters for CJK; punctuation stands alone. The units of F1 and of BLEU.

    >>> units("在2019年, Tom's book")
    ['在', '2019', '年', ',', 'Tom', "'", 's', 'book']
    """
    found: list[str] = []
    word = ""
    for char in text:
        if char.isalnum() and not is_cjk(char):
            word += char
            continue
        if word:
            found.append(word)
            word = ""
        if not char.isspace():
            found.append(char)
    if word:
        found.append(word)
    return found


_UNSPACED = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f\u3040-\u30ff"  # scripts without spaces
_WIDE = "\u3001-\u303f\uff00-\uffef"  # their punctuation
_STRAY = re.compile(f"(?<=[{_WIDE}]) +(?=\\S)|(?<=\\S) +(?=[{_WIDE}])|(?<=[{_UNSPACED}]) +(?=[{_UNSPACED}])")
_SEVERAL = re.compile(r"(?<=\S)  +(?=\S)")


def join_pieces(text: str) -> str:
    """Removes the spaces that tokenizers put next to Chinese and Japanese characters; keeps those between Latin or Korean words.

    >>> join_pieces("我 们 用 Python 3 写 ， 好 吗 ？"), join_pieces("오늘 날씨가 정말 좋네요")
    ('我们用 Python 3 写，好吗？', '오늘 날씨가 정말 좋네요')
    """
    return (_SEVERAL.sub(" ", _STRAY.sub("", text)) if " " in text else text).strip()


_IDEOGRAPH = "[\u3400-\u9fff]"
_PARTED = re.compile(f"(?<={_IDEOGRAPH}) +(?={_IDEOGRAPH})")
_KANA = re.compile("[\u3041-\u30ff]")


def is_presegmented(texts: Iterable[str]) -> bool:
    """Whether Chinese texts have spaces between their words or characters, as tokenizers left them; Japanese is not asked.

    A word has about 1.7 characters: such texts have a space after every second one. Typed ones have one in fifty.

    >>> is_presegmented(["你 去 那儿 竟然 不喊 我"]), is_presegmented(["周末去 KTV 吗", "好 走起！"])
    (True, False)
    """
    characters = spaces = 0
    for text in texts:
        if _KANA.search(text) is None:
            characters += sum("\u3400" <= char <= "\u9fff" for char in text)
            spaces += len(_PARTED.findall(text))
    return spaces >= 0.2 * characters > 0


def without_controls(text: str) -> str:
    r"""The text without control characters (C0, DEL, C1) but newline and tab: none of it can steer a terminal.

    >>> without_controls("a\x1b[31mb\tc\r\x9b2J")
    'a[31mb\tc2J'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")
