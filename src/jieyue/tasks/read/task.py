"""Reading comprehension: a question, one or more passages, an answer that is a slice of them or none. Three readers.

  masked    one forward pass, the [MASK]s spell the answer (7148): masked.py
  span      one forward pass, where the answer starts and ends; [CLS] = none: span.py
  prefix    the answer is written token by token, all passages together, with a cache (7115): prefix.py

They share data, windows, targets, scores and calibration. One reader = one value (``reader.Reader``).

  data      SQuAD 1.1 and 2.0, CMRC 2018, DRCD, multi-passage (WebQA, SogouQA): data/qa_files.py
  command   jieyue train read [--reader masked|span|prefix], jieyue evaluate, jieyue read
  cost      encoding about 2 µs a token; masked and span one forward pass a window, prefix one short one more a token
  score     exact match, F1 and their mean; SQuAD's rule, CMRC 2018's where there is CJK text
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from jieyue.data.corpora import heldout_path
from jieyue.data.curriculum import Curriculum
from jieyue.data.findings import Findings
from jieyue.data.qa_files import read_questions
from jieyue.data.questions import Passage, Question, overlap
from jieyue.errors import InputError
from jieyue.hf.classic_presets import CLASSIC_PRESETS
from jieyue.hf.presets import PRESETS
from jieyue.metrics.baselines import compare_baselines
from jieyue.metrics.calibration import Calibration, calibration_error, cross_fit
from jieyue.metrics.extraction import TrainingAnswers, exact_matches, score_answers
from jieyue.report import Report
from jieyue.tasks import POSITIONS, Card, Deciding, Facts, Judged, Prediction, Row, RunConfig, Task
from jieyue.tasks.fields import text_of
from jieyue.tasks.shipped import questions as shipped_questions
from jieyue.training.objective import Objective

from .curriculum import PRESET_CURRICULUM, stages_of
from .masked import MASKED
from .prefix import PREFIX
from .reader import Answer, encode_questions
from .report import QUALITY, report_examples, report_quality
from .settings import ReadSettings
from .span import SPAN

if TYPE_CHECKING:
    from jieyue.hf.types import Tokenizer

__all__ = ["READERS", "TASK", "ReadTask", "against_baselines", "calibrate", "score_readings"]

READERS = {"masked": MASKED, "span": SPAN, "prefix": PREFIX}
SHIPPED_QUESTIONS = 60_000


class ReadTask(Task[Question, ReadSettings, Answer]):
    """An answer to each question, with its place and a calibrated confidence."""

    name = "read"
    title = "Reading"
    noun = "questions"
    doing = "reading"
    head = "masked-lm"
    new_heads = ("span",)
    quality = QUALITY
    settings_class = ReadSettings
    deciding = Deciding(
        score="exact_match",
        title="Exact match while training, on questions set aside",
        quantity="exact match",
        unit="share",
    )
    card = Card(
        usage=lambda folder: (
            "from jieyue.tasks.read.asking import read\n\n"
            f'print(read("{folder}", "a question", ["a passage ..."]))\n\n'
            "# from the command line: place, confidence, long passages, several passages\n"
            "# jieyue read FOLDER --question '…' --file passage.txt"
        ),
        limits="Answers are spans of the given passage. The numbers below hold for questions like those it was judged on.",
        tags=("question-answering",),
    )

    def default_settings(self, config: RunConfig, seed: int) -> ReadSettings:
        """The article's lengths; for a preset on the corpus that ships, ones that fit its short answers and passages."""
        if config.model in {*PRESETS, *CLASSIC_PRESETS} and not config.data:
            return ReadSettings(answer_slots=8, question_tokens=32, window_tokens=192, overlap_tokens=48, seed=seed)
        return ReadSettings(seed=seed)

    # -- data

    def read(
        self, files: Sequence[str | Path], settings: ReadSettings, *, skip_bad: bool = False
    ) -> tuple[list[Question], Findings]:
        own = {"delimiter": settings.delimiter, "encoding": settings.encoding}
        return read_questions(files, skip_bad=skip_bad, **own)

    def shipped(self, limit: int | None, seed: int) -> tuple[list[Question], Findings]:
        return shipped_questions(limit or SHIPPED_QUESTIONS, seed)

    def shipped_held_out(self) -> tuple[list[Question], Findings]:
        return read_questions(heldout_path())

    def groups(self, examples: Sequence[Question]) -> list[str]:
        return [question.passages[0].text for question in examples]

    def is_known(self, example: Question) -> bool:
        return example.golds is not None

    def shared(self, train: Sequence[Question], held_out: Sequence[Question]) -> Mapping[str, int]:
        return overlap(train, held_out)

    def texts(self, examples: Sequence[Question]) -> list[str]:
        """Every question and every distinct passage, in order."""
        texts: dict[str, None] = {}
        for question in examples:
            texts[question.text] = None
            texts.update(dict.fromkeys(passage.text for passage in question.passages))
        return list(texts)

    # -- training

    def curriculum(self, asked: str | None, *, is_preset: bool) -> str:
        """A preset's own curriculum, or none: checkpoints need none."""
        return asked or (PRESET_CURRICULUM if is_preset else "none")

    def stages(
        self, examples: Sequence[Question], curriculum: str | None, seed: int
    ) -> list[tuple[float, Sequence[Question]]]:
        """Passages that grow."""
        return [*stages_of(Curriculum.parse(curriculum or "none"), examples, seed)]

    def encode(
        self, examples: Sequence[Question], tokenizer: Tokenizer, settings: ReadSettings, *, folder: Path | None = None
    ) -> tuple[list[Row], Counter[str]]:
        return encode_questions(examples, tokenizer, settings, READERS[settings.reader])

    def columns(self, settings: ReadSettings) -> tuple[str, ...]:
        return (*POSITIONS, "places") if settings.reader == "span" else POSITIONS

    def objective(self, settings: ReadSettings) -> Objective:
        return READERS[settings.reader].objective

    def example_batch(self, settings: ReadSettings, rows: int, positions: int) -> dict[str, Tensor]:
        return READERS[settings.reader].example(settings, rows, positions)

    # -- answering and judging

    def answer(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        examples: Sequence[Question],
        settings: ReadSettings,
        *,
        batch_size: int = 32,
        done: Callable[[int, int], None] | None = None,
    ) -> list[Answer]:
        """``batch_size`` counts windows, sorted by length so that little is padding."""
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: expected at least 1")
        answered = READERS[settings.reader].answer
        return answered(model, tokenizer, examples, settings, batch_size=batch_size, done=done)

    def from_row(self, row: Facts, settings: ReadSettings) -> Question:
        """``question`` and a passage (``context``, ``passage``, ``text``), or ``passages``: a list of texts or of objects."""
        question = text_of(row, ("question", "query", "query_text", "问题"), "a question")
        several = row.get("passages")
        if not isinstance(several, list):
            text = text_of(row, ("context", "passage", "text", "context_text", "document", "段落", "文章"), "a passage")
            return Question("1", question, (Passage(text),))
        texts = [one.get("passage", one.get("text")) if isinstance(one, dict) else one for one in several]
        if not texts or not all(isinstance(one, str) and one.strip() for one in texts):
            raise InputError("row, field 'passages'", f"{several!r:.60}", "a list of texts that are not empty")
        return Question("1", question, tuple(Passage(str(one)) for one in texts))

    def told(self, answer: Answer) -> Prediction:
        """The answer's text, "" where the passages hold none."""
        return Prediction(answer.text, answer.confidence)

    def score(self, answers: Sequence[Answer], examples: Sequence[Question], memory: Facts | None = None) -> Facts:
        return score_readings(answers, examples, _known(memory))

    def fitted(
        self, settings: ReadSettings, model: nn.Module, tokenizer: Tokenizer, set_aside: Sequence[Question]
    ) -> tuple[ReadSettings, Facts]:
        """The settings with the temperature that fits the questions set aside."""
        found = calibrate(self.answer(model, tokenizer, set_aside, settings), set_aside)
        return replace(settings, temperature=found.temperature), {
            "temperature": found.temperature,
            "questions": found.count,
        }

    def memory(self, examples: Sequence[Question], tokenizer: Tokenizer, settings: ReadSettings) -> Facts:
        """The most frequent answer, and digests of all."""
        return TrainingAnswers.of([one.golds for one in examples if one.golds is not None]).to_dict()

    def compared(
        self,
        judged: Judged[Question, Answer],
        model: nn.Module,
        tokenizer: Tokenizer,
        settings: ReadSettings,
        memory: Facts | None,
    ) -> Judged[Question, Answer]:
        """Beside the article's greedy search on the same probabilities (where the reader has another), and three baselines."""
        known, beside = _known(memory), dict[str, Facts]()
        beside["baselines"] = against_baselines(judged.answers, judged.examples, known)
        if settings.reader == "masked":
            greedy = replace(settings, search="greedy")
            path = self.answer(model, tokenizer, judged.examples, greedy, batch_size=judged.batch_size)
            beside["greedy"] = score_readings(path, judged.examples, known)
        return replace(judged, beside=beside)

    def report(self, report: Report, judged: Judged[Question, Answer], settings: ReadSettings, fitted: Facts) -> None:
        calibration = {"temperature": settings.temperature, "questions": "the training run's", **fitted}
        report_quality(report, judged.scores, judged.beside, calibration)
        report_examples(report, judged.examples, judged.answers)
        rate = len(judged.examples) / max(judged.seconds, 1e-9)
        how = f"{READERS[settings.reader].way}, {judged.batch_size} windows at once, tokenization included"
        report.section(QUALITY).fact("reading speed", rate, "per second", how)

    def numbers(self, judged: Judged[Question, Answer]) -> dict[str, float]:
        return {name: float(judged.scores[name]) for name in ("exact_match", "f1")}


def _judged(answers: Sequence[Answer], questions: Sequence[Question]) -> tuple[list[Answer], list[bool]]:
    """The answers to questions whose golds are known, and whether each matches one exactly."""
    pairs = [(one, question) for one, question in zip(answers, questions, strict=True) if question.golds is not None]
    right = exact_matches([one.text for one, _ in pairs], [(question.text, question.golds) for _, question in pairs])
    return [one for one, _ in pairs], [bool(value) for value in right]


def score_readings(
    answers: Sequence[Answer], questions: Sequence[Question], training: TrainingAnswers | None = None
) -> Facts:
    """Facts of ``metrics.extraction.score_answers``; ``training`` tells which golds were never an answer there.

    ``calibration_error`` and ``calibration_bins`` say whether the confidences hold on these questions.
    """
    asked = [(question.text, question.golds) for question in questions]
    groups = [question.passages[0].text for question in questions]
    facts = score_answers([one.text for one in answers], asked, training, groups)
    known, right = _judged(answers, questions)
    if known:
        facts["calibration_error"], bins = calibration_error([one.confidence for one in known], right)
        facts["calibration_bins"] = [asdict(one) for one in bins]
    return facts


def calibrate(answers: Sequence[Answer], questions: Sequence[Question]) -> Calibration:
    """The temperature for ``ReadSettings``, fitted on held-out answers, and the calibration error before and after.

    The error after is measured on halves that the temperature was not fitted on.
    """
    known, right = _judged(answers, questions)
    if not known:
        raise InputError("calibrate(answers, questions): found no question whose answers are known, expected some")
    readings = [one.reading for one in known if one.reading is not None]
    return cross_fit(lambda own, heat: [readings[at].confidence(heat) for at in own], right)


def against_baselines(
    answers: Sequence[Answer], questions: Sequence[Question], training: TrainingAnswers | None
) -> Facts:
    """Facts of the three baselines on these questions, and the gain over the best: ``metrics.baselines``."""
    return compare_baselines(
        [one.text for one in answers],
        [(question.text, question.golds, [passage.text for passage in question.passages]) for question in questions],
        training,
    )


def _known(memory: Facts | None) -> TrainingAnswers | None:
    return TrainingAnswers.from_dict(memory) if memory else None


TASK = ReadTask()
