"""Article 8: three linear maps against softmax on the same task and budget, the effect of a band, and the entropies.

The task: hidden tokens of everyday talks (recipe ``mlm``; at ``hour`` of Chinese posts), by a model from scratch with each
attention in place of softmax; same weights at the start, same rows, same updates. Score: accuracy at held-out hidden tokens.
Entropies: of the weights that each attention makes of the queries and keys of the softmax-trained model.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from jieyue.budget import Budget
from jieyue.data.corpora.everyday import compose_talks, heldout_talks
from jieyue.data.dialogues import DialogueFiles
from jieyue.hf.attention_check import verify_attention
from jieyue.hf.row_losses import text_batches
from jieyue.json_values import Facts
from jieyue.report import Estimate, Picture, write_whole
from jieyue.report.amounts import Given
from jieyue.run.comparison import train_on
from jieyue.run.config import TrainingConfig
from jieyue.tasks import RunConfig
from jieyue.tasks.mlm.settings import MaskSettings
from jieyue.tasks.mlm.task import TASK

from .claims import Cell, Claim, Pairs, Place, Scale, Verdict
from .judging import by_seed, decide, difference, mean

__all__ = ["CLAIMS"]

KEY = "linear-against-softmax"
SOFTMAX = "full()"
MAPS = ("linear(elu)", "linear(softmax)", "linear(cosine)")
BANDED = ("linear(elu, window=8)", "local(8)+linear(elu)")
CASES = (SOFTMAX, *MAPS, *BANDED)
SIZES: dict[Scale, Facts] = {
    "minutes": {"updates": 200, "learning_rate": 2e-3, "tokens": 64, "talks": 2000},
    "hour": {
        "updates": 3000,
        "learning_rate": 1e-3,
        "tokens": 128,
        "data": "dialogue/lccc_base/LCCC-base_valid.json.xz",
    },
}


def _cells(scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    sizes = SIZES.get(scale)
    return [Cell(KEY, {"attention": case, **sizes}, seed) for seed in seeds for case in CASES] if sizes else []


def _measure(cell: Cell, place: Place) -> Facts:
    asked = cell.settings
    pattern = None if asked["attention"] == SOFTMAX else asked["attention"]
    train, held = (write_whole(place.folder / name, text) for name, text in _texts(asked, place).items())
    settings = MaskSettings(max_tokens=asked["tokens"], pseudo_rows=0, seed=cell.seed)
    config = RunConfig(attention=pattern, data=[train], held_out=[held], settings=settings)
    training = TrainingConfig(steps=asked["updates"], learning_rate=asked["learning_rate"], seed=cell.seed)
    work, allowed = place.folder / "training", Budget.parse("4GiB")
    prepared, _, trained = train_on(TASK, config, training, work, allowed, curve=None)
    model, tokenizer = trained.model, prepared.model.tokenizer
    found = TASK.numbers(TASK.judge(model, tokenizer, prepared.sources.held_out, settings))
    numbers = {"score": found["accuracy"], "loss": found["loss"], "seconds": trained.facts["seconds"]}
    if pattern is not None:
        return numbers
    texts = list(prepared.sources.held_out)[:32]
    batches = text_batches(model, tokenizer, texts, rows=8, max_tokens=asked["tokens"])
    checked = verify_attention(model, batches, [each for each in CASES if each != SOFTMAX])
    entropies = {row.name: statistics.mean(row.entropies) for row in checked.rows}
    return numbers | {"entropies": entropies | {"uniform": statistics.mean(checked.uniform)}}


def _texts(asked: Facts, place: Place) -> dict[str, str]:
    """Two files' texts, a talk a line: to train on and to judge by."""
    if "data" in asked:
        assert place.data is not None  # ``running`` refuses before
        files = DialogueFiles(place.data / asked["data"], held_out=0.05)
        talks, held = list(files), files.held
    else:
        talks, held = compose_talks(0)[: asked["talks"]], heldout_talks()
    lines = {
        name: [" ".join(one.text for one in talk) for talk in own] for name, own in (("train", talks), ("held", held))
    }
    return {f"{name}.txt": "".join(f"{line}\n" for line in own) for name, own in lines.items()}


def _judge_maps(results: Pairs) -> Verdict:
    """Softmax is better than each map: its score over every map's lies above 0."""
    scores = {case: by_seed(results, "score", attention=case) for case in CASES}
    gains = {f"softmax over {case}": difference(scores[SOFTMAX], scores[case]) for case in MAPS}
    return decide(gains, unit="share", columns=COLUMNS, rows=_rows(results), lines=_picture(results))


def _judge_band(results: Pairs) -> Verdict:
    """A band helps: the score of the elu map within a band, or with softmax in it, over that of the bare map."""
    scores = {case: by_seed(results, "score", attention=case) for case in CASES}
    gains = {f"{case} over linear(elu)": difference(scores[case], scores["linear(elu)"]) for case in BANDED}
    return decide(gains, unit="share", columns=COLUMNS, rows=_rows(results), lines=_picture(results))


def _judge_entropies(results: Pairs) -> Verdict:
    """Each map's weights are nearer to uniform than softmax's, on the queries and keys that softmax was trained with."""
    found = {cell.seed: numbers["entropies"] for cell, numbers in results if "entropies" in numbers}
    names = list(next(iter(found.values())))
    own = {name: {seed: values[name] for seed, values in found.items()} for name in names}
    gains = {f"entropy of {case} over softmax": difference(own[case], own["softmax"]) for case in MAPS}
    rows = [[name, mean(values)] for name, values in own.items()]
    columns: list[str | tuple[str, str]] = ["weights", ("entropy on the trained model's q and k", "nats")]
    return decide(gains, columns=columns, rows=rows)


COLUMNS: tuple[str | tuple[str, str], ...] = ("attention", ("accuracy", "share"),
           ("over softmax", "share"), ("loss", "nats"), ("training", "seconds"))  # fmt: skip


def _rows(results: Pairs) -> list[list[Given]]:
    def of(case: str, number: str) -> dict[int, float]:
        return by_seed(results, number, attention=case)

    return [
        [
            "softmax" if case == SOFTMAX else case,
            mean(of(case, "score")),
            None if case == SOFTMAX else difference(of(case, "score"), of(SOFTMAX, "score")),
            mean(of(case, "loss")),
            mean(of(case, "seconds")),
        ]
        for case in CASES
    ]


def _picture(results: Pairs) -> Picture:
    bars: dict[str, Estimate] = {
        "softmax" if case == SOFTMAX else case: mean(by_seed(results, "score", attention=case)) for case in CASES
    }
    return Picture.bars("Accuracy at held-out hidden tokens", bars, value=("accuracy", "share"))


def _claim(
    key: str,
    sentence: str,
    number: str,
    judge: Callable[[Pairs], Verdict],
    cases: Sequence[str] = CASES,
    full: Sequence[str] = (),
) -> Claim:
    """The claims share their cells: ``KEY`` names what was trained, whichever claim asks."""
    return Claim(
        key=key,
        article=8,
        sentence=sentence,
        articles_number=number,
        cells=lambda scale, seeds: [cell for cell in _cells(scale, seeds) if cell.settings["attention"] in cases],
        measure=_measure,
        judge=judge,
        full=tuple(map(_full, full)),
        version=2,
    )


def _full(case: str) -> str:
    """One of them at the size of a real pre-training; a file of your own texts, a line each."""
    return (
        f"jieyue train mlm --model small --attention '{case}' --data texts.txt --max-tokens 512 --effective-batch 256 "
        "--steps 100000 --device cuda"
    )


CLAIMS = (
    _claim(
        KEY,
        "Trained alike on the same task, linear maps are worse than softmax",
        "not tested; later remarks: 1 + cos does not work well",
        _judge_maps,
        full=(SOFTMAX, *MAPS),
    ),
    _claim(
        "linear-band",
        "A band makes a linear map better: its own cut to a window, or softmax near and the map for the rest",
        "a later remark, without numbers: clearly better",
        _judge_band,
        full=BANDED,
    ),
    _claim(
        "linear-entropies",
        "On a softmax-trained model's queries and keys linear maps give nearly uniform weights",
        "none given",
        _judge_entropies,
        (SOFTMAX,),
    ),
)
