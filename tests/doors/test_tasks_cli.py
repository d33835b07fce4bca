"""Classification and masked-LM training from the command line, one after the other; unsharing in between; resuming."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_cli import jieyue
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

SMALL = ["--limit", "100", "--effective-batch", "8", "--max-tokens", "48", "--budget", "3GiB"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "mlm"
    done = jieyue(
        "train", "mlm", "--model", "albert-tiny", "--steps", "2", "--pseudo-rows", "1", "--out", folder, *SMALL
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_mlm_leaves_a_plain_model(pretrained):
    assert AutoModelForMaskedLM.from_pretrained(pretrained).config.num_hidden_groups == 1
    report = json.loads((pretrained / "report.json").read_text())
    assert "pseudo-perplexity" in json.dumps(report)


def test_classify_from_that_checkpoint_unsharing_in_the_middle(pretrained, tmp_path):
    flags = [
        "--model",
        pretrained,
        "--unshare",
        "2",
        "--unshare-after",
        "2",
        "--steps",
        "4",
        "--save-steps",
        "3",
        *SMALL,
    ]
    done = jieyue("train", "classify", "--out", tmp_path / "c", "--json", *flags, savings=False)
    assert done.returncode == 0, done.stderr
    assert {"data", "plan", "training", "report", "saved"} <= {
        json.loads(line)["event"] for line in done.stdout.splitlines()
    }
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "c")
    assert model.config.num_hidden_groups == 2 and len(model.config.id2label) == 13
    first, second = model.albert.encoder.albert_layer_groups
    assert not torch.equal(*(group.albert_layers[0].ffn.weight for group in (first, second)))
    assert "4 layers in 2 blocks" in json.dumps(json.loads((tmp_path / "c" / "report.json").read_text()))
    for folder in (tmp_path / "c" / "checkpoints").glob("checkpoint-*"):  # an unfinished run, from after the change
        if not folder.name.endswith("-3"):
            [one.unlink() for one in sorted(folder.rglob("*")) if one.is_file()]
            folder.rmdir()
    before = load_file(tmp_path / "c" / "model.safetensors")
    again = jieyue("train", "classify", "--out", tmp_path / "c", "--resume", *flags, savings=False)
    assert again.returncode == 0, again.stderr
    after = load_file(tmp_path / "c" / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    file = tmp_path / "few.tsv"
    file.write_text("text\tlabel\nThe train stops here.\ttransport\nBuy two.\tshops\n", encoding="utf-8")
    judged = jieyue("evaluate", tmp_path / "c", file, "--json")
    assert judged.returncode == 0, judged.stderr


@pytest.mark.slow
def test_another_optimizer_and_dtype_are_named_with_what_they_are(tmp_path):
    flags = ["--model", "bert-tiny", "--optimizer", "adafactor", "--dtype", "bfloat16"]
    done = jieyue("train", "classify", "--out", tmp_path / "c", "--steps", "1", *flags, *SMALL)
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "optimizer adafactor exact, of another optimizer" in lines
    assert "matrix products in bfloat16 approximate" in lines
    again = jieyue(
        "train", "classify", "--out", tmp_path / "c", "--steps", "1", "--resume", *SMALL, "--model", "bert-tiny"
    )
    assert again.returncode == 2 and "resume: optimizer is 'adamw'" in again.stderr, again.stderr


def test_plan_and_doctor(pretrained, tmp_path):
    shown = []
    for flags in (["--unshare", "all"], ["--unshare"], ["--unshare", "2"]):
        plan = jieyue("plan", "classify", "--model", pretrained, *SMALL, *flags)
        assert plan.returncode == 0, plan.stderr
        shown.append(plan.stdout[plan.stdout.index("What unsharing adds") :])
    assert "4 layers in 4 blocks" in shown[0] and "training memory" in shown[0] and "parameters" in shown[0]
    assert shown[0] == shown[1] and "4 layers in 2 blocks" in shown[2]
    file = tmp_path / "few.tsv"
    file.write_text("text\tlabel\nSame\ta\nSame\tb\n", encoding="utf-8")
    doctor = jieyue("doctor", "classify", file, "--max-tokens", "16")
    assert doctor.returncode == 0 and "with another label than before" in " ".join(doctor.stdout.split()), doctor.stderr
    text = tmp_path / "text.txt"
    text.write_text("A line of text.\n" * 9, encoding="utf-8")
    assert jieyue("doctor", "mlm", text).returncode == 0


@pytest.mark.slow
def test_training_tells_what_unsharing_adds(pretrained, tmp_path):
    flags = ["--model", pretrained, "--steps", "1", "--out", tmp_path, *SMALL]
    done = jieyue("train", "classify", "--unshare", *flags)
    assert done.returncode == 0, done.stderr
    before, after = (line for line in done.stdout.splitlines() if "4 layers in " in line)
    assert "in 1 block" in before and "MiB" in before and "4 layers in 4 blocks" in after and "MiB" in after
    assert "What unsharing adds" not in jieyue("train", "classify", *flags).stdout


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["train", "classify", "--unshare", "some", *SMALL], "--unshare"),
        (["train", "classify", "--model", "bert-tiny", "--unshare", "all", *SMALL], "ALBERT"),
        (["train", "classify", "--unshare-after", "3", *SMALL], "unshare_after"),
        (["train", "mlm", "--model", "bert-tiny", "--start", "sideways", "--steps", "1", *SMALL], "start="),
        (["train", "classify", "--data", "missing.tsv"], "missing.tsv"),
        (["train", "read", "--optimizer", "lion"], "adamw, adafactor, momentum, tiger, muon, adam-mini, adamw-8bit"),
        (["plan", "title", "--dtype", "float16"], "float32, bfloat16"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, found, tmp_path):
    done = jieyue(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and found in done.stderr and "Traceback" not in done.stderr, done.stderr
