"""A reader on rows of your own: dicts with a question, a passage and its answers; then a question about a new passage."""

import tempfile
from pathlib import Path

import jieyue as jy

NAMES = ["王小明", "李芳", "张伟", "刘洋", "陈静", "赵磊", "孙丽", "周杰"]
PLACES = ["青岛市", "杭州市", "成都市", "西安市", "大连市"]


def row(number: int) -> dict:
    name, place = NAMES[number % len(NAMES)], PLACES[number % len(PLACES)]
    text = f"{name}出生于{place}，现在是一名教师，今年{20 + number}岁。"
    answers = {"text": [place], "answer_start": [text.index(place)]}
    return {"id": str(number), "question": f"{name}在哪里出生？", "context": text, "answers": answers}


def main(steps: int = 4) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        trained = jy.train("tiny", task="read", data=[row(n) for n in range(80)], out=Path(folder) / "reader", steps=steps,
                           effective_batch=8, budget="2GiB")  # fmt: skip
        print(trained.report.text()[:600])
        asked = {"question": "钱勇在哪里出生？", "context": "钱勇出生于南京市，喜欢游泳。"}
        answers = jy.predict(trained.folder, [asked])
    print(answers)
    return answers


if __name__ == "__main__":
    main(steps=300)
