"""The report in a real browser (headless Chromium): at 360 and 1280 pixels, in light and dark, asking nothing of anyone.

A page of the test's own holds the report in one frame a width, measures what is visible there and writes it down as JSON.
"""

import json
import math
import random
import re
import shutil
import subprocess

import pytest

from jieyue.report import Estimate, Example, Picture, Report

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
HOSTILE = '<img src=x onerror="top.harmed=1"><script>top.harmed=1</script>'
SMALLEST_TEXT = 9.5  # pixels

MEASURE = """
const frames = [];
function measure(frame) {
  const page = frame.contentDocument, view = frame.contentWindow, root = page.documentElement;
  const seen = e => e.getClientRects().length > 0;
  const texts = [...page.querySelectorAll("svg text")].filter(e => seen(e) && e.textContent.trim());
  const rect = e => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom].map(Math.round); };
  const scale = e => { const s = e.ownerSVGElement; return s.getBoundingClientRect().width / s.viewBox.baseVal.width; };
  return {
    width: view.innerWidth, scrollWidth: root.scrollWidth,
    dark: view.matchMedia("(prefers-color-scheme: dark)").matches,
    ground: view.getComputedStyle(page.body).backgroundColor, ink: view.getComputedStyle(page.body).color,
    harmed: window.harmed === 1, elements: page.querySelectorAll("img, script, iframe").length - 1,  // one script is ours
    told: tell(page, view),
    requests: view.performance.getEntriesByType("resource").length,
    svgs: [...page.querySelectorAll("figure svg")].filter(seen)
      .map(s => [...s.querySelectorAll("text")].map(e => [e.textContent, ...rect(e)])),
    sizes: texts.map(e => parseFloat(view.getComputedStyle(e).fontSize) * scale(e)),
    inks: [...new Set(texts.map(e => view.getComputedStyle(e).fill))],
    boxes: [...page.querySelectorAll(".scroll")].map(e => [e.clientWidth, e.scrollWidth]),
    body: parseFloat(view.getComputedStyle(page.body).fontSize),
  };
}
function tell(page, view) {
  const svg = [...page.querySelectorAll("figure svg")].find(s => s.querySelector(".point") && s.getClientRects().length);
  const said = () => svg.nextElementSibling.textContent;
  const key = name => svg.dispatchEvent(new view.KeyboardEvent("keydown", {key: name}));
  if (!svg.hasAttribute("tabindex")) return [];
  svg.focus();
  const told = [said()];
  for (const name of ["ArrowRight", "End", "ArrowRight", "Home", "x"]) { key(name); told.push(said()); }
  const box = svg.getBoundingClientRect();
  svg.dispatchEvent(new view.PointerEvent("pointerdown", {clientX: box.right - 5, clientY: box.top + box.height / 2}));
  return [...told, said()];
}
async function show(text, width) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width:${width}px;height:900px;border:0`;
  frame.srcdoc = text;
  const loaded = new Promise(done => frame.onload = done);
  document.body.append(frame);
  await loaded;
  await frame.contentDocument.fonts.ready;
  frames.push(measure(frame));
}
(async () => { for (const [text, width] of WORK) await show(text, width);
  document.body.textContent = "MEASURED" + JSON.stringify(frames) + "END"; })();
"""


def report():
    random.seed(3)
    made = Report(
        "Reading · tiny preset", "a line about the run, long enough to need more than one line on a telephone"
    )
    quality = made.section("Quality")
    quality.fact(
        "exact match", 0.713, "share", "SQuAD rule, 1,012 held-out questions", interval=(0.684, 0.741), key=True
    )
    quality.fact("time", 312.4, "seconds", key=True).fact("peak", 413 * 2**20, "bytes", key=True).fact(
        "n" * 80, "v" * 200
    )
    bars = {"this reader": Estimate(0.71, 0.68, 0.74), "best n-gram overlap span": 0.31, "always abstain": 0.2}
    quality.picture(Picture.bars("Exact match", bars, value=("exact match", "share")))
    steps = list(range(0, 1200, 6))
    quality.picture(
        Picture.lines("Loss", {"training": (steps, [4 * math.exp(-s / 300) for s in steps])}, x="update", y="loss")
    )
    lengths = [128, 256, 512, 1024, 2048, 4096, 8192]
    curves = {
        "full attention": (lengths, [n * n * 64 for n in lengths]),
        "local(128)+atrous(8)": (lengths, [n * 2**13 for n in lengths]),
    }
    quality.picture(Picture.lines("Peak", curves, x="tokens", y=("peak", "bytes"), log="xy", rules={"budget": 2**30}))
    parts = {"weights": {"whole": 2**26, "in pieces": 2**26}, "activations": {"whole": 2**30, "in pieces": 2**28}}
    quality.picture(Picture.bars("Parts", parts, value=("memory", "bytes"), stacked=True, rules={"budget": 2**29}))
    quality.picture(
        Picture.histogram("Sure", {"right": [random.random() ** 0.3 for _ in range(300)]}, x=("confidence", "share"))
    )
    quality.table(
        [f"column {i}" for i in range(14)], [[i * j * 1.5 for i in range(14)] for j in range(3)], title="Wide"
    )
    passage = "城东图书馆自三月一日起调整开放时间，周末提前到下午五点闭馆。"
    quality.examples(
        [
            Example(
                question="几点闭馆？",
                passage=passage,
                answer="下午五点",
                gold=("下午五点",),
                confidence=0.9,
                right=True,
            )
        ]
    )
    quality.note(HOSTILE).fact(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    return made


def measured(folder, work, dark):
    """What the browser saw of each (page, width)."""
    wrapper = folder / f"wrapper{int(dark)}.html"
    script = f"const WORK = {json.dumps(work)};{MEASURE}".replace("</", "<\\/")
    wrapper.write_text(f'<!doctype html><meta charset="utf-8"><body><script>{script}</script>', encoding="utf-8")
    command = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--user-data-dir={folder / 'profile'}"]
    command += ["--no-first-run", "--virtual-time-budget=5000", "--dump-dom", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search("MEASURED(.*)END", done.stdout, re.S)
    assert found, f"the browser wrote nothing down: {done.stderr[-800:]}"
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&nbsp;", " ").replace("&amp;", "&"))


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    page = report().html()
    twin = page.replace(".narrow{display:block;", ".narrow{display:none;").replace(".wide{display:none}", ".wide{}")
    assert twin != page
    raw = re.sub("<meta http-equiv=[^>]*>", "", page).replace("</main>", f"{HOSTILE}</main>")
    light = measured(folder, [(page, 360), (page, 1280), (twin, 360), (raw, 360)], dark=False)
    dark = measured(folder, [(page, 360)], dark=True)
    return {"phone": light[0], "desk": light[1], "twin": light[2], "raw": light[3], "night": dark[0]}


@pytest.mark.parametrize("name", ["phone", "desk", "night"])
def test_page_fits_and_fetches_nothing(views, name):
    view = views[name]
    assert view["scrollWidth"] <= view["width"]
    assert view["harmed"] is False and view["elements"] == 0 and view["requests"] == 0
    assert len(view["svgs"]) == 5 and view["body"] == 16


@pytest.mark.parametrize("name", ["phone", "desk", "night"])
def test_values_are_told_by_keyboard_and_touch(views, name):
    first, second, last, still, home, other, touched = views[name]["told"]
    assert first == home == other == "training · update 0 · 4" and second.startswith("training · update 18")
    assert last == still == touched and last.startswith("training · update 1,194")


@pytest.mark.parametrize("name", ["phone", "desk", "night"])
def test_words_in_pictures_are_readable(views, name):
    """Large enough, inside the page, none upon another."""
    view = views[name]
    assert len(view["sizes"]) > 40 and min(view["sizes"]) >= SMALLEST_TEXT
    for words in view["svgs"]:
        for number, (text, left, top, right, bottom) in enumerate(words):
            assert left >= 0 and right <= view["width"], text
            for other, left2, top2, right2, bottom2 in words[:number]:
                across, along = min(right, right2) - max(left, left2), min(bottom, bottom2) - max(top, top2)
                assert across <= 1 or along <= 4, f"{text!r} stands upon {other!r}"


def test_the_alarm_rings(views):
    """The broken twins: wide pictures shrunk to a telephone are too small; text pasted as markup, unguarded, does harm."""
    assert min(views["twin"]["sizes"]) < SMALLEST_TEXT
    assert views["raw"]["harmed"] is True and views["raw"]["elements"] == 2


def test_wide_tables_scroll_in_their_box(views):
    inside, whole = max(views["phone"]["boxes"], key=lambda box: box[1])
    assert inside <= 360 and whole > 500


def test_colours_follow_the_reader(views):
    light, dark = views["phone"], views["night"]
    assert (light["dark"], dark["dark"]) == (False, True)
    assert light["ground"] == "rgb(251, 250, 247)" and dark["ground"] == "rgb(20, 23, 26)"
    assert light["ink"] != dark["ink"] and not set(light["inks"]) & set(dark["inks"])
