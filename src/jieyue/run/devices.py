"""Which devices there are: a name that is none of them, or that this machine has none of, is refused before anything is read."""

from __future__ import annotations

import re

import torch

from jieyue.errors import InputError

__all__ = ["check_device"]


def check_device(device: str, *, must_exist: bool = False) -> None:
    """``device``: cpu, cuda, cuda:N or mps. ``must_exist``: this machine needs to have it, since something will run there."""
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        do = "name a GPU cuda" if device in ("gpu", "nvidia", "rocm") else ""
        raise InputError("device", repr(device), "cpu, cuda, cuda:N or mps", do)
    kind, _, number = device.partition(":")
    has_mps = kind == "mps" and torch.backends.mps.is_available()
    count = torch.cuda.device_count() if kind == "cuda" and torch.cuda.is_available() else int(has_mps)
    if must_exist and kind != "cpu" and int(number or 0) >= count:
        found = f"{count} of that kind" if count else "none that torch could use"
        raise InputError(f"device={device!r}", found, "a device of this machine", "train or plan on the cpu")
