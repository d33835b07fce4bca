"""A model that writes titles: trained on pairs of your own, then asked for the titles of new texts."""

import tempfile
from pathlib import Path

import jieyue as jy

PLACES = ["图书馆", "游泳馆", "博物馆", "体育馆", "书店", "咖啡店"]


def pair(number: int) -> dict:
    place, hour = PLACES[number % len(PLACES)], number % 12 + 8
    text = f"各位读者，{place}从下周起每天{hour}点开门，请大家互相转告，感谢各位一直以来的支持。"
    return {"text": text, "title": f"{place}{hour}点开门"}


def main(steps: int = 3) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        trained = jy.train("tiny", task="title", data=[pair(n) for n in range(72)], out=Path(folder) / "titles", steps=steps,
                           effective_batch=8, budget="2GiB", settings={"title_tokens": 12, "source_tokens": 64})  # fmt: skip
        print([section.title for section in trained.report.sections])
        titles = jy.predict(trained.folder, [{"text": pair(5)["text"]}, "各位读者，花店从下周起每天9点开门。"])
    print(titles)
    return titles


if __name__ == "__main__":
    main(steps=400)
