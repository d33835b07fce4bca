"""Three examples of every verb, shown by its ``--help``: the line, and what it does. A test reads each as the verb would."""

from __future__ import annotations

__all__ = ["EXAMPLES", "Example"]

Example = tuple[str, str]

_SHIPS = "On the corpus that ships, within 1 GiB."
_SPARSE = "jieyue sparsify DIR --attention 'first(4)+local(512)'"
_OWN = "Your own files; judged by files that it never trained on."
_CHECK = "Everything wrong with your files, or that will be cut."
_BOTH = "What training and held-out files share is counted as well."
_STRICT = "Exit code 1 where something must be mended first."
_PEAK = "The predicted peak, and what was chosen for it."
_HUB = "A checkpoint of the hub instead of a model from scratch."
_ROWS = "Updates of more rows, in as many pieces as fit."
_OUT = "The report as a page and as JSON, in a folder."
_JSON = "One JSON object a line, for a program."


def _of_task(task: str, data: str, held_out: str, third: Example) -> dict[str, tuple[Example, Example, Example]]:
    """What ``doctor``, ``plan`` and ``train`` have in common for a task; ``third``: an example of training that is its own."""
    files = f"--data {data} --held-out {held_out}"
    own = (f"jieyue plan {task} --data {data} --budget 2GiB", _PEAK)
    first = (f"jieyue train {task} --budget 1GiB --out runs/{task}", _SHIPS)
    trained = (f"jieyue train {task} {files} --model DIR-OR-HUB-NAME", _OWN)
    return {
        f"doctor {task}": (
            (f"jieyue doctor {task} {data}", _CHECK),
            (f"jieyue doctor {task} {data} --held-out {held_out}", _BOTH),
            (f"jieyue doctor {task} {data} --strict", _STRICT),
        ),
        f"plan {task}": (
            own,
            (f"jieyue plan {task} --data {data} --model DIR-OR-HUB-NAME", _HUB),
            (f"jieyue plan {task} --data {data} --budget 2GiB --effective-batch 64", _ROWS),
        ),
        f"train {task}": (
            first if task != "tag" else (f"jieyue train tag --data {data} --show", _SHOW),
            trained,
            third,
        ),
    }


_SHOW = "What would be run, as a file for --config; nothing is run."

EXAMPLES: dict[str, tuple[Example, Example, Example]] = {
    "": (
        ("jieyue train read --budget 1GiB --out runs/reader", "A model that reads, from scratch, in minutes."),
        ("jieyue read runs/reader --question 'When does it open?' --file notice.txt", "Ask it about a text."),
        ("jieyue doctor", "What was found on this machine."),
    ),
    **_of_task(
        "read", "train.json", "dev.json",
        ("jieyue train read --config run.toml --steps 300", "Flags from a file; what is typed holds."),
    ),
    **_of_task(
        "classify", "train.tsv", "dev.tsv",
        ("jieyue train classify --data train.tsv --class-weights balanced --keep best", "Rare labels count as much as others."),
    ),
    **_of_task(
        "tag", "train.conll", "dev.conll",
        ("jieyue train tag --data train.conll --epochs 10 --keep best", "The best weights by a look now and then."),
    ),
    **_of_task(
        "mlm", "text.txt", "held_out.txt",
        ("jieyue train mlm --data text.txt --model albert-tiny --unshare --time 5min", "For about five minutes, no layer shared."),
    ),
    **_of_task(
        "title", "train.tsv", "test.tsv",
        ("jieyue train title --data train.tsv --remedy 'fgm(0.5)' --show", _SHOW),
    ),
    **_of_task(
        "chat", "talks.jsonl", "test.jsonl",
        ("jieyue train chat --data talks.jsonl --resume --out runs/chat", "Goes on where an interrupted run stopped."),
    ),
    "doctor": (
        ("jieyue doctor", "What was found on this machine, to paste into an issue."),
        ("jieyue doctor read train.json", _CHECK),
        ("jieyue doctor classify train.tsv --strict --json", _STRICT),
    ),
    "train": (
        ("jieyue train read --budget 1GiB", _SHIPS),
        ("jieyue train classify --data train.tsv --held-out dev.tsv", _OWN),
        ("jieyue train mlm --config run.toml --show", _SHOW),
    ),
    "plan": (
        ("jieyue plan read --model tiny --budget 1GiB", _PEAK),
        ("jieyue plan classify --model bert-base-chinese --budget 4GiB", _HUB),
        ("jieyue plan model bert-base-chinese --length 512 --budget 8GiB", "A model of any kind, by its configuration alone."),
    ),
    "plan model": (
        ("jieyue plan model bert-base-chinese --length 512 --budget 8GiB", "A model of any kind, by its configuration alone."),
        ("jieyue plan model DIR --data texts.txt --effective-batch 64", "Rows as long as your longest text."),
        ("jieyue plan model tiny --measure 2 --out plans", "The two best settings are run and measured."),
    ),
    "sparsify": (
        (f"{_SPARSE} --data text.txt", "Measures the price and chooses the layers that stay full; trains nothing."),
        (f"{_SPARSE} --data text.txt --tokens 200k --control", "Trains the model and the full one alike, and compares."),
        (f"{_SPARSE} --data text.txt --full-layers 11 --tokens 2M --train qkvo --distill logits", "Learns from the full model."),
    ),
    "compare": (
        ("jieyue compare title --seeds 3", "The article's remedies beside each other."),
        ("jieyue compare title --variant baseline --variant 'FGM=fgm(0.5)'", "Variants of your own."),
        ("jieyue compare title --data train.tsv --held-out test.tsv --epochs 2", _OWN),
    ),
    "compare title": (
        ("jieyue compare title --seeds 3", "The article's remedies beside each other."),
        ("jieyue compare title --variant baseline --variant 'FGM=fgm(0.5)'", "Variants of your own."),
        ("jieyue compare title --data train.tsv --held-out test.tsv --epochs 2", _OWN),
    ),
    "evaluate": (
        ("jieyue evaluate runs/reader", "By the held-out examples that ship."),
        ("jieyue evaluate runs/reader dev.json --out judged", _OUT),
        ("jieyue evaluate runs/reader dev.json --skip-bad --json", _JSON),
    ),
    "read": (
        ("jieyue read runs/reader --question 'When does it open?' --file notice.txt", "Ask it about a text."),
        ("jieyue read runs/reader --question 'Who came?' --text 'Ann came.' --text 'Bo came.'", "Several passages vote."),
        ("jieyue read runs/reader --question 'Who came?' --json < notice.txt", _JSON),
    ),
    "predict": (
        ("jieyue predict runs/classifier texts.csv --out labelled.csv", "The same rows in the same order, answered."),
        ("jieyue predict runs/reader rows.jsonl --out answers.jsonl --resume", "Goes on where an interrupted run stopped."),
        ("jieyue predict runs/tagger - --out - < texts.jsonl", "From standard input to standard output."),
    ),
    "classify": (
        ("jieyue classify runs/classifier --text 'The goal came late.'", "One text."),
        ("jieyue classify runs/classifier --text 'A text' --text 'Another' --json", _JSON),
        ("jieyue classify runs/classifier < texts.txt", "A text a line."),
    ),
    "tag": (
        ("jieyue tag runs/tagger --text 'Ann lives in Springfield'", "One text."),
        ("jieyue tag runs/tagger --text 'Ann' --text 'Bo' --json", _JSON),
        ("jieyue tag runs/tagger < texts.txt", "A text a line."),
    ),
    "title": (
        ("jieyue title runs/title --file article.txt", "A title for a file."),
        ("jieyue title runs/title --text 'The library opens at nine.' --beams 1", "The fastest search."),
        ("jieyue title runs/title --json < article.txt", _JSON),
    ),
    "chat": (
        ("jieyue chat runs/chat", "Talk to it; /help lists what else there is."),
        ("jieyue chat runs/chat --temperature 0", "Always the likeliest token."),
        ("jieyue chat runs/chat --seed 1 --json < messages.txt", "A message a line, the replies as JSON."),
    ),
    "serve": (
        ("jieyue serve runs/chat", "A chat page and OpenAI's protocol on this machine."),
        ("jieyue serve runs/chat runs/reader --port 8080", "Several models, each under its folder's name."),
        ("jieyue serve runs/chat --host 0.0.0.0 --api-key-file key.txt", "For others, with a key."),
    ),
    "export": (
        ("jieyue export runs/classifier --to onnx --out model.onnx", "For a program without torch, checked for equal outputs."),
        ("jieyue export runs/classifier --out small.onnx --int8", "Weights in a quarter of the bytes; what that costs is measured."),
        ("jieyue export runs/classifier --out model.onnx --overwrite --json", _JSON),
    ),
    "push": (
        ("jieyue push runs/classifier OWNER/NAME --dry-run", "What would go up, and what stays here; nothing is sent."),
        ("jieyue push runs/classifier OWNER/NAME --private --license apache-2.0", "A private repository; the licence is named."),
        ("jieyue push runs/reader OWNER/NAME --quote", "With examples from the data, in the card and in the reports."),
    ),
    "reproduce": (
        ("jieyue reproduce 3 --seeds 3", "One article's claims."),
        ("jieyue reproduce --scale hour --data FOLDER", "All of them, on larger data."),
        ("jieyue reproduce --weights all-MiniLM-L6-v2", "Those that a pretrained model can serve, on its folder."),
    ),
    "bench": (
        ("jieyue bench attention --parts small", "One part of the table."),
        ("jieyue bench activation --dtype float32", "One number format."),
        ("jieyue bench memory --model tiny", "One saving after another."),
    ),
    "bench attention": (
        ("jieyue bench attention --parts small", "One part of the table."),
        ("jieyue bench attention --parts curves --repeats 3", "Fewer repeats."),
        ("jieyue bench attention --out reports", _OUT),
    ),
    "bench activation": (
        ("jieyue bench activation", "Every GELU of this package."),
        ("jieyue bench activation --dtype float32 --elements 1000000", "One number format."),
        ("jieyue bench activation --out reports", _OUT),
    ),
    "bench memory": (
        ("jieyue bench memory --model tiny", "One saving after another."),
        ("jieyue bench memory --model small --length 256 --exact", "Those alone that change no result."),
        ("jieyue bench memory --data texts.txt --out reports", "Rows as long as your longest text."),
    ),
    "verify": (
        ("jieyue verify update DIR --data train.json", "Is the update of each saving the undivided batch's?"),
        ("jieyue verify attention DIR --attention 'local(64)'", "What a pattern changes in your model."),
        ("jieyue verify trainer transformers", "Is another trainer's accumulation exact?"),
    ),
    "verify activation": (
        ("jieyue verify activation DIR", "By the corpus that ships."),
        ("jieyue verify activation DIR --text texts.txt", "By your own texts, one a line."),
        ("jieyue verify activation DIR --variants none,tanh --out reports", _OUT),
    ),
    "verify attention": (
        ("jieyue verify attention DIR --attention 'local(64)'", "What a pattern changes in your model."),
        ("jieyue verify attention DIR --attention 'linear(elu)' --attention 'local(16)+linear(elu)'", "Several, side by side."),
        ("jieyue verify attention DIR --text texts.txt --out reports", _OUT),
    ),
    "verify update": (
        ("jieyue verify update tiny", "By the corpus that ships."),
        ("jieyue verify update DIR --data train.json --dtype float64", "Up to rounding of float64."),
        ("jieyue verify update DIR --settings accumulation,checkpointing --out reports", _OUT),
    ),
    "verify trainer": (
        ("jieyue verify trainer transformers", "Is another trainer's accumulation exact?"),
        ("jieyue verify trainer jieyue --out reports", _OUT),
        ("jieyue verify trainer lightning --scripts scripts", "A script of each cell that is not exact."),
    ),
    "fit": (
        ("jieyue fit gelu", "The best constants of GELU's tanh form."),
        ("jieyue fit gelu --form sigmoid --code c", "As source code."),
        ("jieyue fit gelu --form 'x*sigmoid(k*x)' --domain=-8,8", "A formula of your own."),
    ),
    "fit gelu": (
        ("jieyue fit gelu", "The best constants of GELU's tanh form."),
        ("jieyue fit gelu --form sigmoid --code c", "As source code."),
        ("jieyue fit gelu --form 'x*sigmoid(k*x)' --domain=-8,8 --picture error.svg", "A formula of your own."),
    ),
}  # fmt: skip
