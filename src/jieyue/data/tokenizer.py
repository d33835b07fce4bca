"""What this floor needs of a tokenizer, which is passed in: any that transformers loads as a fast one has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

__all__ = ["Encoded", "Encoding", "Tokenizer"]

Open: TypeAlias = Any  # what transformers' tokenizers take and give: of many types, by the options


class Encoding(Protocol):
    """The tokens of one text."""

    @property
    def ids(self) -> list[int]:
        """Their numbers."""

    def char_to_token(self, char_pos: int) -> int | None:
        """The token that a character is in; None where it is in none."""

    def token_to_chars(self, token_index: int) -> tuple[int, int]:
        """The characters of a token, where places were asked for."""


class Encoded(Protocol):
    """What a tokenizer gives for texts: ``input_ids`` by name, and in ``encodings`` the places of each one's tokens."""

    encodings: Sequence[Encoding]

    def __getitem__(self, name: str) -> Open:
        """``input_ids``, or what else was asked for."""


class Tokenizer(Protocol):
    """What is needed of a tokenizer: transformers' fast ones have it; they take and give many types, so theirs are open here."""

    chat_template: Open

    @property
    def is_fast(self) -> bool:
        """Whether places in the text are known."""

    @property
    def all_special_tokens(self) -> list[str]:
        """Tokens that no text may write."""

    def __call__(self, text: Open, **options: Open) -> Encoded:
        """``input_ids`` of the text, or of each text."""

    def __getattr__(self, name: str) -> Open:
        """Special tokens and their numbers: ``cls_token``, ``sep_token_id``, …"""

    def apply_chat_template(self, conversation: Open, **options: Open) -> Open:
        """The talk as text."""

    def decode(self, token_ids: Open, **options: Open) -> Open:
        """Tokens as text."""
