"""What a task is: one typed class, whose methods a run calls in the order in which they stand here.

A task is a folder with a subclass of ``Task`` and ``TASK``, one value of it, in its ``task.py``; or a Python file of one's
own that defines ``TASK``. Tasks import neither ``run`` nor ``planning`` nor one another.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from jieyue.data.findings import Findings
from jieyue.errors import InputError
from jieyue.json_values import Facts
from jieyue.listener import SILENT, ProgressListener
from jieyue.report import Report

from .config import RunConfig
from .settings import Settings
from .sources import HELD_OUT, MOST_ASIDE, SET_ASIDE, Sources, name_of, sampled, set_apart

if TYPE_CHECKING:
    from torch import Tensor, nn

    from jieyue.hf.types import Tokenizer
    from jieyue.training.objective import Objective

    from .models import ModelSource

__all__ = [
    "POSITIONS",
    "Card",
    "Deciding",
    "Facts",
    "Judged",
    "Prediction",
    "Row",
    "RunConfig",
    "Settings",
    "Sources",
    "Task",
    "name_of",
]

Example = TypeVar("Example")
SettingsT = TypeVar("SettingsT", bound=Settings)
Answer = TypeVar("Answer")

LEAST = 20  # examples that a limit leaves

POSITIONS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")

Row = Mapping[str, Any]
"""An encoded example: ``input_ids`` [L], ``labels``, and what else the task's ``collate`` makes tensors of."""


@dataclass(frozen=True, kw_only=True)
class Deciding:
    """The score by which a model is better than another. ``title``: of its curve on the examples set aside."""

    score: str
    title: str
    quantity: str
    unit: str
    higher_is_better: bool = True


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model card says of any model of this task: Python code that uses the folder, limits, tags."""

    usage: Callable[[str], str]
    limits: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Judged(Generic[Example, Answer]):
    """Answers in the order of the examples, their scores, what stands beside them (baselines, other searches), and seconds."""

    examples: Sequence[Example]
    answers: Sequence[Answer]
    scores: Facts
    seconds: float
    batch_size: int
    beside: Facts = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """What is told of one input: ``answer``, a JSON value; ``confidence`` in [0, 1], None where the model states none."""

    answer: str | float | Sequence[str] | Sequence[Facts] | None
    confidence: float | None = None


class Task(ABC, Generic[Example, SettingsT, Answer]):
    """One job for a model, from the files to the report.

    ``name``: on the command line; ``title``: of the report; ``noun``: what its examples are ("questions"); ``doing``: what
    judging does to them ("reading"); ``head``: the model's, of ``hf.loading.HEADS``; ``new_heads``: heads that a checkpoint
    is not expected to have before training; ``quality``: the report's section with the scores; ``deciding``: the score by
    which models are compared.
    """

    name: str
    title: str
    noun: str
    doing: str
    head: str
    quality: str
    settings_class: type[SettingsT]
    deciding: Deciding
    card: Card
    new_heads: tuple[str, ...] = ()
    curve_examples: int = 200

    # -- settings

    def default_settings(self, config: RunConfig, seed: int) -> SettingsT:
        """The settings where none are given; they may depend on the model and on whether the data are one's own."""
        return self.settings_class()

    def settings(self, config: RunConfig, seed: int) -> SettingsT:
        """Those of ``config``, else the task's own; ``InputError`` for another task's."""
        own = config.settings
        if own is None:
            return self.default_settings(config, seed)
        if not isinstance(own, self.settings_class):
            raise InputError(f"settings: found {type(own).__name__}, expected {self.settings_class.__name__}")
        return own

    def resolved(self, settings: SettingsT, examples: Sequence[Example]) -> SettingsT:
        """Settings that the training examples decide, such as a set of labels."""
        return settings

    # -- data

    @abstractmethod
    def read(
        self, files: Sequence[str | Path], settings: SettingsT, *, skip_bad: bool = False
    ) -> tuple[Sequence[Example], Findings]:
        """The examples of these files, and what was found in them."""

    @abstractmethod
    def shipped(self, limit: int | None, seed: int) -> tuple[Sequence[Example], Findings]:
        """Training examples of the corpus that ships, ``limit`` of them or as many as are usual."""

    @abstractmethod
    def shipped_held_out(self) -> tuple[Sequence[Example], Findings]:
        """The held-out examples that ship."""

    @abstractmethod
    def groups(self, examples: Sequence[Example]) -> list[str]:
        """A text for each example; those with the same one (a passage) are never parted."""

    @abstractmethod
    def shared(self, train: Sequence[Example], held_out: Sequence[Example]) -> Mapping[str, int]:
        """How much of what is held out stands in training too, by name."""

    def is_known(self, example: Example) -> bool:
        """Whether the example says what is right; others neither train nor judge."""
        return True

    def training_examples(
        self, config: RunConfig, settings: SettingsT, seed: int
    ) -> tuple[Sequence[Example], Findings]:
        """Of the files, or of the corpus that ships."""
        if config.data:
            return self.read(config.data, settings, skip_bad=config.skip_bad)
        return self.shipped(config.limit, seed)

    def held_out_examples(self, config: RunConfig, settings: SettingsT) -> tuple[Sequence[Example], Findings] | None:
        """Of the files, of the corpus that ships, or None: a part of the training files."""
        if config.held_out:
            return self.read(config.held_out, settings, skip_bad=config.skip_bad)
        return None if config.data else self.shipped_held_out()

    def sources(self, config: RunConfig, settings: SettingsT, seed: int) -> Sources[Example]:
        """Reads everything and parts it: a tenth held out where no file is named, then 2 % of the rest (at most 400) set aside.

        ``config.limit`` samples both, the same ones whatever the seed. ``InputError`` where too few are left to train or judge by.
        """
        if config.limit is not None and config.limit < LEAST:
            raise InputError(f"limit={config.limit}: expected at least {LEAST} {self.noun}; some are set aside")
        name = name_of(config.data)
        train, findings = self.training_examples(config, settings, seed)
        held, held_findings = self.held_out_examples(config, settings) or (None, None)
        if held is None:
            train, held = set_apart(train, self.groups(train), HELD_OUT, "held out")
        known = self.limited([one for one in train if self.is_known(one)], config.limit, settings, "train")
        held = self.limited([one for one in held if self.is_known(one)], config.limit, settings, "held out")
        fit, aside = set_apart(known, self.groups(known), SET_ASIDE, "set aside", MOST_ASIDE)
        if config.held_out and not held:
            raise InputError(name_of(config.held_out), f"no {self.noun} whose answers are known", "some to judge by")
        if not fit or not aside or not held:
            raise InputError(
                f"{name}: {len({*self.groups(known)})} different texts whose answers are known are too few to hold some out; add "
                "more, or name a file to judge by (--held-out)"
            )
        return Sources(name, fit, aside, held, findings, held_findings, self.shared(fit, held))

    def limited(
        self, examples: Sequence[Example], limit: int | None, settings: SettingsT, salt: str
    ) -> Sequence[Example]:
        """``limit`` of the examples, or all; the same ones whatever the seed."""
        return sampled(examples, limit, salt)

    def judging_sources(
        self, files: Sequence[str | Path], settings: SettingsT, *, skip_bad: bool = False
    ) -> Sources[Example]:
        """Examples to judge a trained model by: of these files, or the held-out ones that ship."""
        held, findings = self.read(files, settings, skip_bad=skip_bad) if files else self.shipped_held_out()
        return Sources(name_of(files), [], [], held, findings, findings)

    def check(
        self, config: RunConfig, settings: SettingsT
    ) -> tuple[Sequence[Example], dict[str, Findings], Mapping[str, int]]:
        """All training examples, findings by file, what training and held-out files share; nothing is held out."""
        train, own = self.training_examples(config, settings, 0)
        findings, held = {"training files": own}, self.held_out_examples(config, settings)
        if held is None:
            return train, findings, {}
        return train, findings | {"held-out files": held[1]}, self.shared(train, held[0])

    # -- model

    @abstractmethod
    def texts(self, examples: Sequence[Example]) -> list[str]:
        """What a preset's vocabulary is learned from."""

    def model_config(self, settings: SettingsT) -> Facts:
        """What the settings say in the model's configuration."""
        return {}

    def open_model(
        self,
        config: RunConfig,
        settings: SettingsT,
        texts: Callable[[], Sequence[str]],
        *,
        start: str | None = None,
        seed: int = 0,
    ) -> ModelSource:
        """The model with this task's head; no weight is allocated."""
        from .models import open_model, with_padding

        head = settings.head(self.head)
        entries, new_head = self.model_config(settings), head in self.new_heads
        source = open_model(config, head, texts, entries=entries, start=start, seed=seed, new_head=new_head)
        return with_padding(source)

    # -- training

    def curriculum(self, asked: str | None, *, is_preset: bool) -> str | None:
        """The curriculum that is followed where ``asked`` leaves it open; None where the task has none."""
        return asked

    def stages(
        self, examples: Sequence[Example], curriculum: str | None, seed: int
    ) -> list[tuple[float, Sequence[Example]]]:
        """(share of the updates at which it ends, its examples) for each stage; the last one has them whole."""
        return [(1.0, examples)]

    @abstractmethod
    def encode(
        self, examples: Sequence[Example], tokenizer: Tokenizer, settings: SettingsT, *, folder: Path | None = None
    ) -> tuple[Sequence[Row], Mapping[str, int]]:
        """Training rows, and what was counted; tokens may be kept in ``folder`` and found again there."""

    def collate(self, rows: Sequence[Row], tokenizer: Tokenizer, settings: SettingsT) -> dict[str, Tensor]:
        """Rows as padded tensors."""
        from jieyue.data.batch import collate, pad_of

        return collate(rows, pad_of(tokenizer))

    def columns(self, settings: SettingsT) -> tuple[str, ...]:
        """The tensors of a batch whose columns are the positions of ``input_ids``: they are trimmed with its padding."""
        return (*POSITIONS, "labels")

    @abstractmethod
    def objective(self, settings: SettingsT) -> Objective:
        """What is trained under these settings: ``(model, batch) -> Tally``."""

    @abstractmethod
    def example_batch(self, settings: SettingsT, rows: int, positions: int) -> dict[str, Tensor]:
        """A batch of the widest shape, its values without meaning: what a plan traces."""

    # -- answering and judging

    @abstractmethod
    def answer(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        examples: Sequence[Example],
        settings: SettingsT,
        *,
        batch_size: int = 32,
        done: Callable[[int, int], None] | None = None,
    ) -> Sequence[Answer]:
        """An answer to every example, in order, whether or not it is known what is right; ``done(so many, of so many)``."""

    def from_row(self, row: Facts, settings: SettingsT) -> Example:
        """An example of one row's fields, which need not say what is right; ``InputError`` names what it lacks."""
        raise InputError(f"{self.name}: this task tells nothing of single rows; expected a task with from_row and told")

    def told(self, answer: Answer) -> Prediction:
        """An answer as a JSON value and its confidence."""
        raise InputError(f"{self.name}: this task tells nothing of single rows; expected a task with from_row and told")

    def predict(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        rows: Sequence[Facts],
        settings: SettingsT,
        *,
        batch_size: int = 32,
    ) -> list[Prediction]:
        """What the model says of each row, in order."""
        examples = [self.from_row(row, settings) for row in rows]
        return [self.told(one) for one in self.answer(model, tokenizer, examples, settings, batch_size=batch_size)]

    @abstractmethod
    def score(self, answers: Sequence[Answer], examples: Sequence[Example], memory: Facts | None = None) -> Facts:
        """The scores of answers; ``deciding.score`` is among them. ``memory``: of the training examples, where it is known."""

    def measure(
        self, model: nn.Module, tokenizer: Tokenizer, examples: Sequence[Example], settings: SettingsT
    ) -> float:
        """The deciding score on the first ``curve_examples`` of these: the curve, and what a best checkpoint is told by."""
        some = examples[: self.curve_examples]
        scores = self.score(self.answer(model, tokenizer, some, settings), some)
        return float(scores[self.deciding_of(settings).score])

    def deciding_of(self, settings: SettingsT) -> Deciding:
        """``deciding``, or the score that these settings choose; ``higher_is_better`` is the same."""
        return self.deciding

    def fitted(
        self, settings: SettingsT, model: nn.Module, tokenizer: Tokenizer, set_aside: Sequence[Example]
    ) -> tuple[SettingsT, Facts]:
        """Settings that need a trained model (a temperature), and facts about them."""
        return settings, {}

    def memory(self, examples: Sequence[Example], tokenizer: Tokenizer, settings: SettingsT) -> Facts:
        """What baselines and "never in training" must know of the training examples, as JSON values; kept in the folder."""
        return {}

    def judge(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        held_out: Sequence[Example],
        settings: SettingsT,
        memory: Facts | None = None,
        *,
        batch_size: int = 32,
        listener: ProgressListener = SILENT,
    ) -> Judged[Example, Answer]:
        """Answers every held-out example whose answer is known and compares; ``memory`` None: nothing is known of training."""
        asked = [one for one in held_out if self.is_known(one)]
        if not asked:
            raise InputError(f"{len(held_out)} {self.noun}: found none whose right answer is known, expected some")
        started = time.perf_counter()
        with listener.progress(self.doing) as update:
            answers = self.answer(
                model, tokenizer, asked, settings, batch_size=batch_size, done=lambda done, of: update(done, of, {})
            )
        judged = Judged(asked, answers, self.score(answers, asked, memory), time.perf_counter() - started, batch_size)
        return self.compared(judged, model, tokenizer, settings, memory)

    def compared(
        self,
        judged: Judged[Example, Answer],
        model: nn.Module,
        tokenizer: Tokenizer,
        settings: SettingsT,
        memory: Facts | None,
    ) -> Judged[Example, Answer]:
        """The same with baselines and other searches beside it."""
        return judged

    # -- reporting

    @abstractmethod
    def report(self, report: Report, judged: Judged[Example, Answer], settings: SettingsT, fitted: Facts) -> None:
        """Writes scores, examples and speed into the report."""

    @abstractmethod
    def numbers(self, judged: Judged[Example, Answer]) -> dict[str, float]:
        """Its scores by name, the deciding one first: what a comparison lays side by side."""

    def report_beside(self, report: Report, variants: Mapping[str, Sequence[Facts]]) -> None:
        """Draws ``Judged.beside`` of several variants, one a seed; nothing where a task has no such pictures."""
