"""Text as Chinese and English readers see it: normal forms, what counts as CJK, joining without stray spaces."""

import re
import unicodedata

__all__ = ["is_cjk", "join_pieces", "normalize", "units"]

_CJK_RANGES = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2FA1F),
    (0x3040, 0x30FF),
    (0xAC00, 0xD7AF),
)
_CJK_PUNCTUATION = ((0x3000, 0x303F), (0xFF00, 0xFFEF))


def is_cjk(char: str) -> bool:
    """True for ideographs, kana and hangul: scripts that put no space between words.

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
    return unicodedata.normalize("NFKC", text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"))


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


def join_pieces(text: str) -> str:
    """Removes the spaces that tokenizers put next to CJK characters and punctuation; keeps those between Latin words.

    >>> join_pieces("我 们 用 Python 3 写 ， 好 吗 ？")
    '我们用 Python 3 写，好吗？'
    """

    def tight(char: str) -> bool:
        return is_cjk(char) or any(low <= ord(char) <= high for low, high in _CJK_PUNCTUATION)

    def keep(match: re.Match[str]) -> str:
        left, right = text[match.start() - 1], text[match.end()]
        if tight(left) and tight(right):
            return ""
        if tight(left) != tight(right) and not (is_cjk(left) or is_cjk(right)):
            return ""
        return " "

    return re.sub(r"(?<=\S) +(?=\S)", keep, text).strip()
