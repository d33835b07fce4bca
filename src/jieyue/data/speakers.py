"""Who speaks: the names that data give their speakers, and the role that each is given. Nobody is given a role by guessing.

Known: user (human, prompter, usr), assistant (gpt, bot, model), system (developer), and tool (function, observation),
which is context and never learned. Other names are refused, or mapped: ``--roles user=客户,assistant=客服``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jieyue.errors import InputError

from .findings import BadRecord
from .history import ROLES, TOOL

__all__ = ["Speakers", "parse_roles"]

_KNOWN = {
    "system": ("system", "developer", "sys"),
    "user": ("user", "human", "prompter", "usr", "用户"),
    "assistant": ("assistant", "gpt", "bot", "model", "chatgpt", "助手"),
    TOOL: (
        "tool",
        "function",
        "observation",
        "tool_call",
        "tool_response",
        "function_call",
        "function_response",
        "ipython",
    ),
}
_NUM_NAMED = 4  # names that a refusal suggests a mapping for


def parse_roles(text: str | None) -> dict[str, str]:
    """``user=客户,assistant=客服`` as {name: role}. ``InputError`` for a role that there is not, and a name given twice.

    >>> parse_roles("user=client,assistant=counselor,assistant=nurse")
    {'client': 'user', 'counselor': 'assistant', 'nurse': 'assistant'}
    """
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in (text or "").replace("，", ",").split(","))):
        role, equals, name = (piece.strip() for piece in part.partition("="))
        if not equals or role not in _KNOWN or not name:
            expected = f"role=name, the role one of {', '.join(_KNOWN)}"
            raise InputError("roles", repr(part), expected, "--roles user=NAME,assistant=NAME")
        if found.setdefault(name, role) != role:
            raise InputError("roles", f"{name!r} as {found[name]} and as {role}", "one role a name")
    return found


class Speakers:
    """Roles by name: ``given`` ones (name -> role) first, then the known names, in any case of letters."""

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        self._roles = {name: role for role, names in _KNOWN.items() for name in names}
        self._roles |= {name.casefold(): role for name, role in (given or {}).items()}

    def knows(self, name: str) -> bool:
        """Whether the name has a role."""
        return name.casefold() in self._roles

    def roles(self, names: Sequence[str]) -> list[str]:
        """The role of each turn of one dialogue, from its speakers' names. ``BadRecord`` names those that have none.

        Where nobody is the assistant and the system answers a user (Schema-Guided Dialogue, CrossWOZ), the system is the
        assistant.
        """
        unknown = list(dict.fromkeys(name for name in names if not self.knows(name)))
        if unknown:
            shown = ", ".join(repr(name) for name in unknown[:_NUM_NAMED])
            first, *others = dict.fromkeys(names)
            mapped = f"user={first},assistant={others[0]}" if others else f"user={first}"
            raise BadRecord(
                f"the speaker {shown}", f"user, assistant, system or tool; say who is who: --roles {mapped}"
            )
        roles = [self._roles[name.casefold()] for name in names]
        if "assistant" not in roles and any(
            one == "system" and "user" in roles[:number] for number, one in enumerate(roles)
        ):
            roles = ["assistant" if role == "system" else role for role in roles]
        assert all(role in (*ROLES, TOOL) for role in roles)
        return roles
