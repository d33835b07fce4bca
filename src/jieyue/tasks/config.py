"""What to train, and on what: ``RunConfig``. Values only; how to train is ``run.config.TrainingConfig``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jieyue.data.textstream import Progress
from jieyue.errors import InputError, check_least, near_file
from jieyue.options import check_kinds, option

from .settings import Settings

__all__ = ["RunConfig"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """``model``: a preset, a folder or a hub name; ``data`` and ``held_out``: files, () = the corpus that ships.

    ``settings``: the task's own, None = its defaults. ``vocabulary``: a ``vocab.txt`` for a preset, None = learned from the
    data. ``limit``: so many training examples, sampled from all. ``new_head``: a checkpoint may lack the task's head.
    ``attention``: a pattern such as "local(64)+atrous(16)" in place of full self-attention. ``unshare``: so many blocks for
    an ALBERT's layers, 0 = one for each layer, None = as it is; ``unshare_after``: only after so many updates.
    ``adapter``: "lora:16" trains adapters of rank 16 (``hf.low_rank``) in place of the weights; ``base``: "nf4" keeps those in four
    bits.
    ``progress``: told while large files are read.
    """

    model: str = option("tiny", "A preset, a folder or a hub name.")
    data: Sequence[str | Path] = option((), "Training files.")
    held_out: Sequence[str | Path] = option((), "Files to judge by.")
    settings: Settings | None = None
    vocabulary: Path | None = option(None, "A vocab.txt for a preset. Default: learned from the data.")
    limit: int | None = option(None, "At most this many training examples, sampled (and as many held-out ones).")
    skip_bad: bool = option(False, "Leave broken records out, count and list them.")
    new_head: bool = option(False, "Permit a checkpoint without the task's head; the head starts anew.")
    attention: str | None = option(None, "A pattern in place of full attention, such as local(64)+atrous(16).")
    unshare: int | None = option(
        None,
        "Give an ALBERT's layers blocks of their own: so many, or each its own without a number.",
        metavar="[GROUPS]",
    )
    unshare_after: int = option(0, "Unshare only after so many updates.", metavar="STEPS")
    adapter: str | None = option(
        None,
        "Train low-rank adapters of this rank on frozen weights, such as lora:16 (needs peft).",
        metavar="lora:RANK",
    )
    base: str | None = option(
        None, "Keep the frozen weights under --adapter in four bits: nf4 (needs bitsandbytes).", metavar="NAME"
    )
    progress: Progress | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_kinds(self)
        check_least(0, unshare=self.unshare, unshare_after=self.unshare_after)
        if self.unshare_after and self.unshare is None:
            raise InputError("unshare_after: found no unshare, expected how many blocks (0 = one for each layer)")
        if self.adapter is not None and self.unshare is not None:
            raise InputError("adapter", "unshare beside it", "one of the two")
        if self.adapter is not None or self.base is not None:
            from jieyue.hf.low_rank import Adapter

            Adapter.parse(self.adapter, self.base)
        check_least(1, limit=self.limit)
        for name in ("data", "held_out"):
            if isinstance(getattr(self, name), str | Path):
                raise InputError(name, f"one name, {str(getattr(self, name))!r}", "a list of files")
            for path in getattr(self, name):
                if not Path(path).exists():
                    raise InputError(name, f"no file {path}", f"files that exist{near_file(path)}")
                if Path(path).is_dir():
                    raise InputError(name, f"the folder {path}", "files")
        if self.vocabulary is not None and not Path(self.vocabulary).is_file():
            found = f"no file {self.vocabulary}"
            raise InputError("vocabulary", found, f"a vocab.txt{near_file(self.vocabulary)}")
