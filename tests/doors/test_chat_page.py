"""The chat page in a real browser (headless Chromium by Playwright): type, stream, stop, again, edit, reload, by keyboard."""

import re
import shutil
import time

import pytest
from serving_models import HOSTILE, LONG, ScriptedModel, make_tokenizer, served, talker

from jieyue.serving.answering import Reader
from jieyue.serving.bounds import Bounds

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
]
FLAGS += ["--disable-sync", "--disable-dev-shm-usage"]
KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield found
        found.close()


def until(page, expression, seconds=10):
    """Waits for it (the page's policy forbids Playwright's own way, which evaluates text inside the page)."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        time.sleep(0.005)


def reader(asked):
    return {"answer": "北京", "start": 4, "end": 6, "confidence": 0.91}


@pytest.fixture(scope="module")
def address():
    tokenizer = make_tokenizer()
    models = [talker(ScriptedModel(tokenizer, seconds=0.01), tokenizer), Reader("reader", "read", reader, Bounds())]
    models.append(Reader("titler", "title", lambda asked: {"title": "A title"}, Bounds()))
    with served(models) as found:
        yield found


@pytest.fixture
def page(browser, address):
    context = browser.new_context(locale="en-GB", viewport={"width": 900, "height": 700})
    opened = context.new_page()
    opened.troubles, opened.asked = [], []
    opened.on("pageerror", lambda error: opened.troubles.append(str(error)))
    opened.on("console", lambda line: line.type == "error" and opened.troubles.append(line.text))
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.goto(address)
    until(opened, "document.querySelector('#model').textContent === 'small'")
    yield opened
    assert opened.troubles == []
    assert all(url.startswith((address, "data:")) for url in opened.asked)
    context.close()


def turns(page):
    return page.eval_on_selector_all(".turn p", "all => all.map(one => one.textContent)")


def finished(page):
    page.wait_for_selector("#send:not([hidden])")


def test_typing_streaming_and_reloading(page):
    page.keyboard.type("hello")
    page.keyboard.press("Enter")
    until(page, "(document.querySelector('.turn.assistant p')?.textContent ?? '').includes('Hello')")
    assert page.is_visible("#stop")
    assert len(turns(page)[1]) < len("Hello there, nice to meet you.")  # it comes in pieces
    finished(page)
    assert turns(page) == ["hello", "Hello there, nice to meet you."]
    page.reload()
    page.wait_for_selector(".turn.assistant")
    assert turns(page) == ["hello", "Hello there, nice to meet you."]
    page.fill("#text", "zh")
    page.click("#send")
    finished(page)
    assert turns(page)[2:] == ["zh", "你好，我们聊聊天气吧。"]
    page.click("#clear")
    assert turns(page) == [] and page.is_visible(".empty")


def test_stopping_and_trying_again(page):
    page.fill("#text", "long")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('.turn.assistant p').textContent.length > 20")
    page.keyboard.press("Escape")
    finished(page)
    assert 20 < len(turns(page)[1]) < len(LONG.strip())
    assert "Stopped." in page.inner_text("#log")
    page.click("text=Try again")
    page.wait_for_selector("#stop:not([hidden])")
    until(page, "document.querySelector('.turn.assistant p').textContent.length > 30")
    page.click("#stop")
    finished(page)
    assert len(turns(page)) == 2


def test_editing_an_earlier_message(page):
    for text in ("hello", "zh"):
        page.fill("#text", text)
        page.keyboard.press("Enter")
        finished(page)
    page.click(".turn.user >> nth=0 >> text=Edit")
    assert page.input_value("#text") == "hello"
    page.fill("#text", "zh")
    page.keyboard.press("Enter")
    finished(page)
    assert turns(page) == ["zh", "你好，我们聊聊天气吧。"]
    page.keyboard.press("ArrowUp")
    assert page.input_value("#text") == "zh"


def test_what_a_model_says_is_text(page):
    page.fill("#text", "html")
    page.keyboard.press("Enter")
    finished(page)
    assert turns(page)[1] == HOSTILE
    page.fill("#text", HOSTILE + " html")
    page.keyboard.press("Enter")
    finished(page)
    assert page.eval_on_selector_all("#log img, #log script", "all => all.length") == 0
    assert page.evaluate("document.body.dataset.harmed") is None


def test_keyboard_alone(page):
    """Everything can be reached with Tab; the focus is seen."""
    page.keyboard.type("hello")
    page.keyboard.press("Enter")
    finished(page)
    reached = []
    for _ in range(16):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.trim() || document.activeElement.id"))
        style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert style != "none" or reached[-1] not in ("Clear", "Edit", "Try again", "Send")
    assert {"Clear", "中文", "Edit", "Try again", "Send"} <= set(reached)


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_widths_and_colours(browser, address, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 740}, color_scheme=scheme, locale="zh-CN")
    page = context.new_page()
    page.goto(address)
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    until(page, "document.querySelector('#model').textContent === 'small'")
    for text in ("hello", "long" + "x" * 60):
        page.fill("#text", text)
        page.keyboard.press("Enter")
        finished(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.documentElement.scrollHeight") <= 740  # the log scrolls, not the page
    for name in ("#send", "#text", "#clear"):
        box = page.query_selector(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["height"] >= 36
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", ground)[0])
    assert (red < 60) == (scheme == "dark")
    assert page.inner_text("#send") == "发送"
    page.click("#language")
    assert page.inner_text("#send") == "Send" and page.evaluate("document.documentElement.lang") == "en"
    context.close()


def test_a_key_is_asked_for(browser):
    tokenizer = make_tokenizer()
    with served([talker(ScriptedModel(tokenizer), tokenizer)], key=KEY) as address:
        page = browser.new_page(locale="en-GB")
        page.goto(address)
        page.wait_for_selector("#key-form:not([hidden])")
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        until(page, "document.querySelector('#model').textContent === 'small'")
        page.fill("#text", "hello")
        page.keyboard.press("Enter")
        finished(page)
        assert turns(page)[1] == "Hello there, nice to meet you."
        page.close()


def test_the_other_pages(browser, address):
    page = browser.new_page(locale="en-GB")
    page.goto(address + "/read")
    until(page, "document.querySelector('#model').textContent === 'reader'")
    page.fill("#passage", "😀会议在北京举行。")
    page.fill("#question", "在哪里？")
    page.keyboard.press("Enter")
    page.wait_for_selector("mark")
    assert page.inner_text("mark") == "北京" and page.inner_text(".text") == "😀会议在北京举行。"
    page.click("text=Title")
    until(page, "document.querySelector('#model').textContent === 'titler'")
    page.fill("#passage", "A long text.")
    page.click("#send")
    page.wait_for_selector(".answer")
    assert page.inner_text(".answer") == "A title"
    page.close()
