"""Every form, target and criterion from tables; clear errors for bad ones; code, pictures, page and bench."""

import ctypes
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from jieyue.activations import (
    FORMS,
    NAMED,
    TARGETS,
    Approximation,
    Gelu,
    apply,
    certify,
    fit,
    gaussian,
    gelu,
    given,
    histogram,
    variant,
)
from jieyue.activations.constants_code import LANGUAGES, code
from jieyue.activations.page import page_fits, page_pictures, page_text, write_page
from jieyue.activations.page_zh import chinese_page
from jieyue.activations.pictures import error_picture, fit_report, function_picture
from jieyue.activations.texts import fit_text, read_criterion, read_domain, read_fixed, read_form, read_target
from jieyue.bench.activation import EXACT, bench_activation, saved_bytes
from jieyue.errors import InputError
from jieyue.report import save_picture

PAGE = Path(__file__).parents[2] / "docs" / "gelu.md"
PAIRS = [(form, target) for form in FORMS for target in ("erf", "phi", "gelu", "gelu'")]
CRITERIA = ["minimax", "grid", "mixed", gaussian(1.0)]


@pytest.mark.parametrize(("form", "target"), PAIRS)
def test_every_form_measures_on_every_target(form, target):
    start = dict(zip(FORMS[form].constants, FORMS[form].start, strict=True))
    found = given(form, start, target)
    x = torch.linspace(-8, 8, 5001, dtype=torch.float64)
    errors = (found(x) - TARGETS[target].function(x)).abs()
    assert float(errors.max()) <= found.error * (1 + 1e-9) + 1e-12 <= found.bound * (1 + 1e-9) + 1e-12
    assert found.proven and torch.isfinite(gelu(x, found)).all()


@pytest.mark.parametrize("criterion", CRITERIA, ids=str)
@pytest.mark.parametrize("form", ["sigmoid", "tanh"])
def test_every_criterion_gives_finite_constants_and_says_what_it_did(form, criterion):
    found = fit(form, "phi", criterion)
    assert found.criterion == str(criterion)
    assert 1e-5 < found.error < 2e-2
    facts = dict(found.rows())
    assert facts["criterion"] == str(criterion) and facts["certified bound"] >= facts["largest error"]
    assert ("2 equal extremes" in facts) is (
        criterion in ("minimax", "grid", "mixed") and (form == "sigmoid" or criterion == "mixed")
    )


def no_constants(x):
    return x


def blows_up(x, a):
    return a / (x - 1)


BAD_FITS = {
    "no parameter": (lambda: fit(no_constants), "no constants"),
    "unknown form": (lambda: fit("cubic"), "one of sigmoid, tanh"),
    "not a form": (lambda: fit(3), "found int"),
    "unknown target": (lambda: fit("tanh", "relu6"), "one of erf, phi"),
    "unknown criterion": (lambda: fit("tanh", "erf", "l1"), "one of local, minimax"),
    "empty domain": (lambda: fit("tanh", domain=(2, 2)), "first below the second"),
    "reversed domain": (lambda: fit("tanh", "erf", "grid", domain=(2, -2)), "first below the second"),
    "infinite domain": (lambda: fit("tanh", domain=(0, float("inf"))), "two finite numbers"),
    "non-finite form": (lambda: fit(blows_up, "gelu", domain=(-1, 1)), "found inf at x = 1"),
    "non-finite target": (lambda: fit("tanh", lambda x: torch.log(x)), "expected finite values on the domain"),
    "target of another shape": (lambda: fit("tanh", lambda x: x.sum()), "tensor of x's shape"),
    "target in float32": (lambda: fit("tanh", lambda x: x.float()), "expected float64"),
    "nothing free": (lambda: fit("sigmoid", fixed={"l": 1.7}), "given"),
    "unknown constant": (lambda: fit("sigmoid", fixed={"b": 1.0}), "constants of 'sigmoid': l"),
    "fixed to nonsense": (lambda: fit("tanh", fixed={"a": "best"}), "finite number or 'local'"),
    "weight elsewhere": (lambda: fit("tanh", "gelu", gaussian(0.1, 20.0), (-1, 1)), "no part of the weight"),
    "no local match": (lambda: fit(lambda x, a: torch.sin(a * x), "erf", "local"), "elementary functions"),
    "given without a constant": (lambda: given("tanh", {"a": 0.8}), "expected a, b"),
    "given a NaN": (lambda: given("sigmoid", {"l": float("nan")}), "finite"),
    "gaussian of no width": (lambda: gaussian(0.0), "above zero"),
    "histogram without order": (lambda: histogram([0, 2, 1], [1, 1]), "ascending"),
    "histogram of nothing": (lambda: histogram([0, 1, 2], [0, 0]), "not all zero"),
    "negative slope": (lambda: certify(NAMED["tanh"], lipschitz=-1.0), "zero or more"),
}


@pytest.mark.parametrize("name", BAD_FITS)
def test_bad_fits_say_what_was_found_and_what_is_expected(name):
    call, words = BAD_FITS[name]
    with pytest.raises(InputError, match=re.escape(words)):
        call()


BAD_VARIANTS = {
    "unknown name": (lambda: "fast", "expected none, tanh"),
    "a constant missing": (lambda: "tanh(a=1)", "expected none, tanh"),
    "not a number": (lambda: "tanh(a=1,b=__import__('os'))", "expected none, tanh"),
    "not finite": (lambda: "sigmoid(l=1e999)", "expected none, tanh"),
    "not a name": (lambda: 3, "found int"),
    "another target": (lambda: fit("sigmoid", "silu"), "found a fit of silu"),
    "a derivative": (
        lambda: given(lambda x, a: torch.sigmoid(a * x), {"a": 2.0}, "gelu'"),
        "direct fit of GELU's derivative",
    ),
}


@pytest.mark.parametrize("name", BAD_VARIANTS)
def test_bad_variants(name):
    make, words = BAD_VARIANTS[name]
    approximate = make()
    for call in (lambda: gelu(torch.zeros(2), approximate), lambda: Gelu(approximate)):
        with pytest.raises(InputError, match=re.escape(words)):
            call()


def test_integers_are_refused():
    with pytest.raises(InputError, match="floating point"):
        gelu(torch.arange(3), "sigmoid")


def test_variants_by_name_text_and_value_are_one():
    x = torch.linspace(-3, 3, 13)
    for name, approximation in NAMED.items():
        if name == "tanh":  # torch's own kernel
            assert torch.allclose(gelu(x, name), gelu(x, approximation), atol=1e-6)
            continue
        assert variant(name) == variant(str(approximation)) == variant(approximation) == approximation
        assert torch.equal(gelu(x, name), Gelu(approximation)(x))
    assert torch.equal(gelu(x), F.gelu(x)) and torch.equal(gelu(x, "tanh"), F.gelu(x, approximate="tanh"))
    assert torch.allclose(gelu(x, "sigmoid"), x * torch.sigmoid(1.702 * x))


@pytest.mark.parametrize("name", [*NAMED, "tanh-powers(a=0.77,b=0.23)", "tanh-sum(a=1.36,b=1.0)"])
@pytest.mark.parametrize("target", ["gelu", "phi", "erf"])
def test_python_code_computes_the_same(name, target):
    approximation = Approximation.parse(name)
    found = given(
        approximation.form, dict(zip(approximation.form.constants, approximation.constants, strict=True)), target
    )
    space = {}
    exec(code(found), space)
    x = torch.linspace(-9, 9, 1001, dtype=torch.float64)
    assert torch.allclose(space[f"approx_{target}"](x), apply(x, found), rtol=1e-12, atol=1e-14)


def test_code_of_callables_and_unknown_languages():
    found = fit(lambda x, a: x * torch.sigmoid(a * x))
    assert "a = 1.77293396561675" in code(found) and "static const float a = 1.77293397f;" in code(found, "c")
    assert LANGUAGES == ("python", "c")
    with pytest.raises(InputError, match="one of python, c"):
        code(found, "rust")


def test_the_bound_in_the_code_is_rounded_up():
    found = given("sigmoid", {"l": 1.702})
    stated = float(re.search(r"within ([\d.e-]+) on", code(found, "c"))[1])
    assert found.bound <= stated <= found.bound * 1.001


def test_report_and_pictures(tmp_path):
    found = fit("tanh")
    report = fit_report(found)
    text = report.text()
    assert (
        "0.0433676016405" in text
        and "of alternating sign" in text
        and "2.707e-4" in text.replace("0.0002707", "2.707e-4")
    )
    points = error_picture({"error": found}, "Errors").series[1]
    assert sum(y == y for y in points.y) == 3  # the equal extremes, each followed by a gap
    path = save_picture(function_picture({"fit": found}, "Function"), tmp_path / "function.svg")
    assert path.read_text(encoding="utf-8").count("<svg") == 1


@pytest.fixture(scope="module")
def fits():
    return page_fits()


def test_the_page_is_what_the_tool_writes(fits):
    """Words exactly; numbers to four digits, since another processor may round the last ones otherwise."""
    number = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")
    english = page_text(fits)
    for path, made in ((PAGE, english), (PAGE.with_name("gelu.zh.md"), chinese_page(fits, english))):
        kept = path.read_text(encoding="utf-8")
        assert number.sub("#", kept) == number.sub("#", made)
        for old, new in zip(number.findall(kept), number.findall(made), strict=True):
            assert float(new) == pytest.approx(float(old), rel=1e-4)


def test_the_page_names_every_constant(fits):
    page = page_text(fits)
    for digits in ("0.0455399241225", "0.03567733730620", "0.04471491122763", "1.70174492563", "1.70174492533800"):
        assert digits in page
    for digits in ("0.0356773373148", "0.0447149112385", "1.772934", "0.8001571", "0.0433676", "2.519e-5"):
        assert digits in page
    for picture in re.findall(r"\((gelu/[\w-]+\.svg)\)", page):
        assert (PAGE.parent / picture).is_file()
    assert sorted(page_pictures(fits)) == sorted(re.findall(r"\(gelu/([\w-]+)\.svg\)", page))


def test_the_page_twice_is_the_same_bytes(fits, tmp_path, monkeypatch):
    monkeypatch.setattr("jieyue.activations.page.page_fits", lambda: fits)
    written = [write_page(tmp_path / each) for each in ("one", "two")]
    assert len(written[0]) == 7
    for one, two in zip(*written, strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_the_pages_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(example, {})


def test_bench_measures_and_says_when_slower():
    found = bench_activation(["none", "tanh-minimax"], elements=4096, dtypes=["float32", "bfloat16"], repeats=3)
    by_name = {(row.name, row.dtype): row for row in found.rows}
    assert by_name[EXACT, "float32"].saved_bytes == by_name["jieyue tanh-minimax", "float32"].saved_bytes == 4 * 4096
    assert by_name["tanh written out", "float32"].saved_bytes >= 4 * 4 * 4096
    assert by_name["jieyue tanh-minimax", "float32"].largest_error < 2.75e-4
    assert by_name["torch tanh", "float32"].largest_error > 4e-4
    slowest = max((row for row in found.rows if row.dtype == "float32"), key=lambda row: row.both_seconds)
    assert "slower than" in found.verdict(slowest)
    assert "tanh-minimax" in found.report().text()
    with pytest.raises(InputError, match="one or more of float32"):
        bench_activation(dtypes=["int8"])


def test_saved_bytes_counts_each_storage_once():
    x = torch.randn(100, requires_grad=True)
    assert saved_bytes(lambda t: t * t, x) == 400


def test_texts_say_what_values_say():
    assert fit_text("tanh", "erf", "mixed").ratios == fit("tanh", "erf", "mixed").ratios
    assert fit_text("tanh", "erf", fixed="a=local").constants == fit("tanh", "erf", fixed={"a": "local"}).constants
    ours = fit_text("a*tanh(x) + b*tanh(x)**3", "2*phi(x) - 1", domain="-8,8")
    assert ours.approximation.constants == pytest.approx(fit("tanh-powers", "erf").approximation.constants, rel=1e-12)
    assert ours.proven and ours.levelled
    mish = read_target("x*tanh(softplus(x))")
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    assert torch.allclose(mish.function(x), F.mish(x), atol=1e-8)
    assert read_form("-" * 290 + "a*x").function(x, 2.0)[0] == -6.0
    assert read_form("-exp(-k*x**2)/m").constants == ("k", "m")
    assert str(read_criterion("gaussian(1.5)")) == "gaussian(1.5)" and read_domain("") is None and read_fixed("") == {}


BAD_TEXTS = {
    "a misspelt form": (lambda: read_form("sigmoidd"), "did you mean 'sigmoid'"),
    "a target without x": (lambda: read_target("2"), "found no x in it"),
    "syntax": (lambda: read_form("a*tanh(b*x"), "one of sigmoid"),
    "attribute": (lambda: read_form("a.__class__"), "found 'a.__class__'"),
    "call of a call": (lambda: read_form("a*(lambda: 1)()"), "known are tanh"),
    "unknown function": (lambda: read_form("a*open(x)"), "'open'"),
    "two arguments": (lambda: read_form("a*tanh(x, x)"), "2 arguments"),
    "a string": (lambda: read_form("a*'x'"), "found 'x'"),
    "comparison": (lambda: read_form("a*(x>0)"), "found 'x > 0'"),
    "an operator": (lambda: read_form("a%x"), "operator"),
    "no constants": (lambda: read_form("tanh(x)"), "no constants"),
    "too long": (lambda: read_form("a+" * 600 + "x"), "at most 300"),
    "a tower": (lambda: fit_text("a*x*9**9**9"), "formula 'a * x * 9 ** 9 ** 9'"),
    "a division by nothing": (lambda: fit_text("a*x/0"), "found -inf at x = -8"),
    "a constant in the target": (lambda: read_target("a*x"), "in x alone"),
    "criterion": (lambda: read_criterion("gaussian(wide)"), "gaussian(sigma)"),
    "another criterion": (lambda: read_criterion("l2"), "one of local"),
    "three ends": (lambda: read_domain("1,2,3"), "found 3 numbers"),
    "no number": (lambda: read_domain("0,far"), "such as -8,8"),
    "fixed": (lambda: read_fixed("a"), "name=number"),
    "fixed to a word": (lambda: read_fixed("a=big"), "name=number"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_bad_texts(name):
    call, words = BAD_TEXTS[name]
    with pytest.raises(InputError, match=re.escape(words)):
        call()


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("name", ["tanh5-minimax", "tanh-minimax", "sigmoid"])
def test_the_c_code_at_the_ends(name, tmp_path):
    chosen = NAMED[name]
    found = given(chosen.form.name, dict(zip(chosen.form.constants, chosen.constants, strict=True)))
    source = code(found, "c").replace("static inline ", "")
    (tmp_path / "gelu.c").write_text(source, encoding="utf-8")
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O2", "-o", tmp_path / "gelu.so", tmp_path / "gelu.c", "-lm"], check=True
    )
    function = ctypes.CDLL(str(tmp_path / "gelu.so")).approx_gelu
    function.argtypes, function.restype = [ctypes.c_float], ctypes.c_float
    space = {}
    exec(code(found, "python"), space)
    for x in (-math.inf, -3e38, -1e30, -500.0, -8.4, -1.0, 0.5, 9.0, 1e30, math.inf):
        inside = torch.tensor(x, dtype=torch.float64)
        both = function(x), float(space["approx_gelu"](inside))
        expected = 0.0 if x < -400 else math.inf if x == math.inf else float(gelu(inside, name))
        for value in both:
            assert value == pytest.approx(expected, rel=1e-5, abs=1e-9), x
    assert math.isnan(function(math.nan)) and math.isnan(float(space["approx_gelu"](torch.tensor(math.nan))))


@pytest.mark.parametrize("form", ["k", "x/2*(1+erf(k*x))"])
@pytest.mark.parametrize("criterion", ["minimax", "local"])
@pytest.mark.parametrize("high", [8.0, 1e6])
def test_forms_that_are_constant_or_exact_are_reported(form, criterion, high):
    """A constant's value has no shape of its own, and an exact form's error has no extremes."""
    found = fit(read_form(form), criterion=criterion, domain=(-high, high))
    report = fit_report(found)
    assert "Function" in report.markdown() and "Error" in report.markdown()
    assert (found.error < 1e-9) == (form != "k") and found(torch.zeros(3)).shape == (3,)
