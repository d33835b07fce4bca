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


WATCH = """window.seen = [];
new MutationObserver(() => {
  const one = document.querySelector(".turn.assistant .said");
  if (one) window.seen.push([one.textContent.trim().length, !document.querySelector("#stop").hidden]);
}).observe(document.querySelector("#log"), { subtree: true, childList: true, characterData: true })"""


def until(page, expression, seconds=10):
    """Waits for it (the page's policy forbids Playwright's own way, which evaluates text inside the page)."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        time.sleep(0.005)


def reader(asked):
    rivals = [{"answer": "上海", "vote": 0.12}]
    found = {"answer": "北京", "start": 4, "end": 6, "confidence": 0.91, "rivals": rivals}
    return found | {"passage": next(n for n, text in enumerate(asked["passages"]) if "北京" in text)}


def judge(asked):
    ranked = [{"label": "good", "probability": 0.9}, {"label": "bad", "probability": 0.1}]
    shapes = {
        "many": {"answer": ["good", "bad"], "confidence": 0.5, "labels": [{**one, "threshold": 0.1} for one in ranked]},
        "none": {"answer": [], "confidence": 0.5, "labels": []},
        "number": {"value": 2.5},
    }
    return {
        "answers": [shapes.get(one, {"label": "good", "confidence": 0.9, "labels": ranked}) for one in asked["texts"]]
    }


def marker(asked):
    found = [{"start": 1, "end": 4, "type": "PER", "text": "Ann"}]
    return {"answers": [{"entities": found if "Ann" in text else [], "confidence": 0.8} for text in asked["texts"]]}


@pytest.fixture(scope="module")
def address():
    tokenizer = make_tokenizer()
    models = [talker(ScriptedModel(tokenizer, seconds=0.01), tokenizer), Reader("reader", "read", reader, Bounds())]
    models.append(Reader("judge", "classify", judge, Bounds()))
    models.append(Reader("marker", "tag", marker, Bounds()))
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
    return page.eval_on_selector_all(".turn .said", "all => all.map(one => one.textContent.trim())")


def finished(page):
    page.wait_for_selector("#send:not([hidden])")


def test_typing_streaming_and_reloading(page):
    page.evaluate(WATCH)
    page.keyboard.type("hello")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('.turn.assistant .said') !== null")
    finished(page)
    seen = page.evaluate("window.seen")  # it comes in pieces, and meanwhile it can be stopped
    assert any(0 < length < len("Hello there, nice to meet you.") and can_stop for length, can_stop in seen)
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
    until(page, "document.querySelector('.turn.assistant .said').textContent.length > 20")
    page.keyboard.press("Escape")
    finished(page)
    assert 20 < len(turns(page)[1]) < len(LONG.strip())
    assert "Stopped." in page.inner_text("#log")
    page.click("text=Try again")
    page.wait_for_selector("#stop:not([hidden])")
    until(page, "document.querySelector('.turn.assistant .said').textContent.length > 30")
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
    page.fill("#passages textarea", "你好。")
    page.click("#more")
    page.fill("#passages textarea >> nth=1", "😀会议在北京举行。")
    page.fill("#question", "在哪里？")
    page.keyboard.press("Enter")
    page.wait_for_selector("mark")
    assert page.inner_text("mark") == "北京" and page.inner_text(".text") == "😀会议在北京举行。"
    assert "Passage 2" in page.inner_text("#found") and page.inner_text(".rivals li") == "上海 12 %"
    page.click("#passages .plain >> nth=0")
    assert page.eval_on_selector_all("#passages textarea", "all => all.map(one => one.value)") == ["😀会议在北京举行。"]
    assert page.is_hidden("#passages .plain")
    page.click("text=Title")
    until(page, "document.querySelector('#model').textContent === 'titler'")
    page.fill("#passage", "A long text.")
    page.click("#send")
    page.wait_for_selector(".answer")
    assert page.inner_text(".answer") == "A title"
    page.click("text=Classify")
    until(page, "document.querySelector('#model').textContent === 'judge'")
    page.fill("#passage", "fine")
    page.click("#send")
    page.wait_for_selector(".labels")
    assert page.inner_text(".answer") == "good"
    assert [row.split() for row in page.inner_text(".labels tbody").splitlines()] == [
        ["good", "90.0", "%"],
        ["bad", "10.0", "%"],
    ]
    for text, told in (("many", "good, bad"), ("none", "No label"), ("number", "2.5")):
        page.fill("#passage", text)
        page.click("#send")
        until(page, f"document.querySelector('.answer').textContent === '{told}'")
    page.click("text=Tag")
    until(page, "document.querySelector('#model').textContent === 'marker'")
    page.fill("#passage", "😀Ann is here")
    page.click("#send")
    page.wait_for_selector("mark")
    assert page.inner_text("mark") == "Ann PER" and page.inner_text(".text") == "😀Ann PER is here"
    page.fill("#passage", "nobody")
    page.click("#send")
    until(page, "document.querySelector('.answer').textContent === 'No entity was found.'")
    page.close()


def test_changing_the_language_in_a_stream(page):
    """The reply goes on where it is drawn anew."""
    page.fill("#text", "long")
    page.keyboard.press("Enter")
    until(page, "(document.querySelector('.turn.assistant .said')?.textContent ?? '').length > 20")
    page.click("#language")
    before = len(turns(page)[1])
    until(page, f"document.querySelector('.turn.assistant .said').textContent.length > {before + 20}")
    assert page.inner_text("#stop") == "停止"
    page.keyboard.press("Escape")
    finished(page)
    assert "已停止。" in page.inner_text("#log")


def test_escape_while_composing_stops_nothing(page):
    page.fill("#text", "long")
    page.keyboard.press("Enter")
    page.wait_for_selector("#stop:not([hidden])")
    page.evaluate(
        "document.querySelector('#text').dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape', isComposing: true, bubbles: true}))"
    )
    before = len(turns(page)[1])
    until(page, f"document.querySelector('.turn.assistant .said').textContent.length > {before + 20}")
    page.click("#stop")
    finished(page)


def test_what_editing_does_is_seen_and_can_be_left(page):
    for text in ("hello", "zh"):
        page.fill("#text", text)
        page.keyboard.press("Enter")
        finished(page)
    assert page.is_hidden("#editing")
    page.keyboard.press("ArrowUp")
    assert page.is_visible("#editing") and page.input_value("#text") == "zh"
    assert page.eval_on_selector_all(".turn.going", "all => all.length") == 2
    page.keyboard.press("Escape")
    assert page.is_hidden("#editing") and page.input_value("#text") == ""
    page.fill("#text", "a draft")
    page.click(".turn.user >> nth=0 >> text=Edit")
    page.click("#cancel")
    assert page.input_value("#text") == "a draft" and len(turns(page)) == 4


def test_markdown_is_shown_and_harmless(page):
    """A reply in Markdown becomes elements; a script, a picture, a dangerous link become nothing or text."""
    said = "# One\n\n**bold** and `code`\n\n- a\n- b\n\n| a | b |\n|:-:|--:|\n| 1 | 2 |\n\n"
    said += "[good](https://a.example) [bad](javascript:alert(1)) [data](data:text/html,x) ![x](https://a.example/x.png)\n\n"
    said += "<b onclick=x>raw</b> <img src=x onerror=y>\n\n```js\n<script>1</script>\n```"
    import json

    found = page.evaluate(
        f"(box => (box.append(shownMarkdown({json.dumps(said)})), box.innerHTML))(document.createElement('div'))"
    )
    for part in ("<h1>One</h1>", "<strong>bold</strong>", "<code>code</code>", "<li>a</li>", "<td>1</td>"):
        assert part in found
    assert 'href="https://a.example"' in found and 'rel="noopener noreferrer nofollow"' in found
    for part in ("<b ", "<b>", "<img", "<script", 'href="javascript', 'href="data', "style=", 'onclick="'):
        assert part not in found, part
    page.fill("#text", "hello")
    page.keyboard.press("Enter")
    finished(page)
    assert page.eval_on_selector_all(".turn.assistant .said > p", "all => all.length") == 1


def test_copying(browser, address):
    context = browser.new_context(locale="en-GB", permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(address)
    until(page, "document.querySelector('#model').textContent === 'small'")
    page.fill("#text", "zh")
    page.keyboard.press("Enter")
    finished(page)
    page.click(".turn.assistant >> text=Copy")
    until(page, "[...document.querySelectorAll('.turn.assistant button')].some(one => one.textContent === 'Copied')")
    assert page.evaluate("navigator.clipboard.readText()") == "你好，我们聊聊天气吧。"
    context.close()


def test_settings_go_with_the_request_and_stay(page):
    page.click("summary")
    page.fill("#system", "Be kind.")
    page.fill("#temperature", "0.5")
    page.fill("#max_tokens", "3")
    page.fill("#top_p", "7")  # cannot be: left out
    bodies = []
    page.on("request", lambda request: request.method == "POST" and bodies.append(request.post_data_json))
    page.fill("#text", "long")
    page.press("#text", "Enter")
    finished(page)
    assert bodies[0]["messages"][0] == {"role": "system", "content": "Be kind."}
    assert (bodies[0]["temperature"], bodies[0]["max_tokens"]) == (0.5, 3) and "top_p" not in bodies[0]
    assert "longest length" in page.inner_text("#log")
    page.reload()
    assert page.input_value("#system") == "Be kind." and page.input_value("#temperature") == "0.5"
    page.click("summary")
    page.click("#reset")
    assert page.input_value("#system") == ""


def test_a_broken_store_is_passed_over(browser, address):
    page = browser.new_page(locale="en-GB")
    troubles = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(address)
    for stored in ("{}", "null", "7", "[1, null, {}]", "[[", '[{"role": "user", "content": 3}]'):
        page.evaluate(
            f"['turns', 'settings', 'language'].forEach(name => sessionStorage.setItem('jieyue.' + name, {stored!r}))"
        )
        page.reload()
        until(page, "document.querySelector('#model').textContent === 'small'")
        assert page.is_visible(".empty")
    page.fill("#text", "zh")
    page.keyboard.press("Enter")
    finished(page)
    assert turns(page) == ["zh", "你好，我们聊聊天气吧。"] and troubles == []
    page.close()


def test_a_wrong_key_is_told(browser):
    tokenizer = make_tokenizer()
    with served([talker(ScriptedModel(tokenizer), tokenizer)], key=KEY) as address:
        page = browser.new_page(locale="en-GB")
        page.goto(address)
        until(page, "document.querySelector('#model').textContent === 'A key is needed.'")
        for wrong in ("wrong", "密钥"):
            page.fill("#key", wrong)
            page.keyboard.press("Enter")
            until(page, "document.querySelector('#model').textContent.startsWith('That key is not')")
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        until(page, "document.querySelector('#model').textContent === 'small'")
        page.close()


@pytest.mark.slow
def test_a_server_that_comes_back_is_found(browser):
    """What was typed stays; nobody has to load the page again."""
    tokenizer = make_tokenizer()
    page = browser.new_page(locale="en-GB")
    with served([talker(ScriptedModel(tokenizer), tokenizer)]) as address:
        page.goto(address)
        until(page, "document.querySelector('#model').textContent === 'small'")
    page.fill("#text", "zh")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('.problem') !== null")
    until(page, "document.querySelector('#model').textContent === 'The server cannot be reached.'")
    with served([talker(ScriptedModel(tokenizer), tokenizer)], port=int(address.rsplit(":", 1)[1])):
        until(page, "document.querySelector('#model').textContent === 'small'", 20)
        page.click("text=Try again")
        finished(page)
        assert turns(page)[-1] == "你好，我们聊聊天气吧。"
    page.close()
