"""The hub: whose token is here, what a base model's card says of its licence, and one commit of a folder's files.

Everything goes through huggingface_hub, so HF_ENDPOINT, HF_TOKEN, `hf auth login` and its offline switch hold as they always do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from jieyue.errors import InputError, message
from jieyue.report.card import Entry

from .causal_presets import CAUSAL_PRESETS
from .classic_presets import CLASSIC_PRESETS
from .presets import PRESETS

__all__ = ["base_entries", "check_repository", "check_token", "upload"]

Result = TypeVar("Result")
_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?"
_REPOSITORY = re.compile(f"{_PART}/{_PART}")
_BASE = re.compile(f"(?:{_PART}/)?{_PART}")
_LICENCE = ("license", "license_name", "license_link")


def check_repository(name: str) -> None:
    """Refuses what is no OWNER/NAME of the hub."""
    if not _REPOSITORY.fullmatch(name) or ".." in name or "--" in name:
        raise InputError(message("push", f"the name {name!r}", "OWNER/NAME, of letters, digits, '-', '_' and '.'"))


def check_token() -> None:
    """Refuses to go on where nobody is logged in."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise InputError(message("push", "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE set", "a hub that may be asked"))
    if not get_token():
        do = "run `hf auth login`, or set HF_TOKEN to a token that may write"
        raise InputError(message("push", "no token of the hub", "one of yours", do))


def base_entries(model: str, *, may_ask: bool = False) -> dict[str, Entry]:
    """What a card says of the model that training began with: ``base_model`` where the hub has it, and its licence.

    ``model``: as ``RunConfig.model``: a preset has neither; a folder has the licence of its own card. ``may_ask``: the hub's card
    of a hub name is fetched where it is not in the cache. A licence that is not found is left out, never guessed.
    """
    if Path(model).is_dir():
        found = _header(Path(model) / "README.md")
        base = found.get("base_model")
        named = {"base_model": base} if isinstance(base, str) else {}
        return {**named, **_licence(found)}
    if model in {*PRESETS, *CLASSIC_PRESETS, *CAUSAL_PRESETS} or not _BASE.fullmatch(model):
        return {}
    card = _cached_card(model, may_ask)
    return {"base_model": model, **({} if card is None else _licence(_header(card)))}


def _licence(header: Mapping[str, Entry]) -> dict[str, Entry]:
    return {name: header[name] for name in _LICENCE if name in header} if "license" in header else {}


def _header(card: Path) -> dict[str, Entry]:
    """The YAML at the head of a card; nothing where there is none, or it does not parse."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    if not card.is_file():
        return {}
    try:
        found = metadata_load(card) or {}
    except (ValueError, YAMLError, UnicodeDecodeError):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, str | list)}


def _cached_card(model: str, may_ask: bool) -> Path | None:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(model, "README.md")
    if isinstance(cached, str):
        return Path(cached)
    if not may_ask:
        return None
    try:
        return Path(_asked(f"the card of {model}", lambda: hf_hub_download(model, "README.md")))
    except InputError:
        return None


def upload(repository: str, files: Mapping[str, Path | bytes], *, private: bool, summary: str) -> tuple[str, bool]:
    """The files in one commit, in a repository that is made where there is none; its address, and whether it is new.

    ``private``: of a new one; one that is there already and is public is refused then, before anything is sent.
    ``InputError``: in one line what the hub, or the way to it, refused. Cost: every byte once; files that the hub has are not sent.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()

    def there() -> bool | None:
        """Whether the repository is private; None where there is none."""
        try:
            return bool(api.model_info(repository).private)
        except RepositoryNotFoundError:
            return None

    is_private = _asked(repository, there)
    if private and is_private is False:
        do = "make it private on the hub first, take another name, or leave --private out"
        raise InputError(message(f"push {repository}", "a repository that is public", "a private one", do))
    if is_private is None:
        _asked(repository, lambda: api.create_repo(repository, private=private or None))
    added = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
    _asked(repository, lambda: api.create_commit(repository, added, commit_message=summary))
    return f"{api.endpoint}/{repository}", is_private is None


def _asked(what: str, call: Callable[[], Result]) -> Result:
    """Whatever fails between here and the hub, in one line: its client raises errors of several libraries."""
    try:
        return call()
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        told = lines[0].partition(" (Request ID")[0].rstrip(".")
        more = next((f" ({line})" for line in lines[1:] if not line.startswith(("http", "For more", "Please"))), "")
        raise InputError(f"{what}: the hub did not take it: {told}{more}") from error
