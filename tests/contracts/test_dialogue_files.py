"""Dialogue data as people have them: nobody's turns are swapped, nothing of a file is lost, every format gives the same turns."""

import bz2
import codecs
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jieyue.data.dialogues import DialogueFiles, Format, contamination, read_dialogues
from jieyue.data.findings import MEANING, Findings
from jieyue.data.history import Message, alternate
from jieyue.data.speakers import parse_roles
from jieyue.errors import InputError
from jieyue.tasks.chat.settings import ChatSettings
from jieyue.tasks.chat.task import TASK
from jieyue.tasks.config import RunConfig
from jieyue.text import is_presegmented, join_pieces, normalize

TURNS = ["你好吗？", "很好，谢谢。", "吃了吗？", "刚吃过面条。"]
TALK = alternate(TURNS)


def written(folder, text, name="talks.jsonl"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(path, roles=None, **options):
    findings = Findings()
    known = Format(roles=parse_roles(roles), **{k: options.pop(k) for k in ("delimiter", "encoding") if k in options})
    found = list(read_dialogues(path, findings, known=known, **options))
    assert set(findings.counts) <= set(MEANING)
    return found, findings


def dumped(*rows, indent=None):
    return "\n".join(json.dumps(row, ensure_ascii=False, indent=indent) for row in rows)


def messages(names=("user", "assistant"), keys=("role", "content")):
    return [dict(zip(keys, (names[n % 2], text), strict=True)) for n, text in enumerate(TURNS)]


PAIRED = [TURNS[:2], TURNS[2:]]
SHAREGPT = {"conversations": messages(("human", "gpt"), ("from", "value"))}
FORMATS = {
    "utterances a line": dumped(TURNS, TURNS),
    "a list of dialogues": dumped([TURNS, TURNS]),
    "messages": dumped({"messages": messages()}, {"messages": messages()}),
    "a bare list of messages a line": dumped(messages(), messages()),
    "ShareGPT": dumped(SHAREGPT, SHAREGPT),
    "other names": dumped({"turns": messages(("prompter", "Bot"), ("speaker", "text"))}, {"utterances": TURNS}),
    "pairs of speaker and text": dumped(
        {"dialog": [["Human", t] if n % 2 == 0 else ["MODEL", t] for n, t in enumerate(TURNS)]}, TURNS
    ),
    "a list of pairs a line": dumped(PAIRED, PAIRED),
    "both sides in one": dumped({"conversation": [{"human": a, "assistant": b} for a, b in PAIRED]}, TURNS),
    "ChatGLM": dumped(*[{"prompt": TURNS[2], "response": TURNS[3], "history": [TURNS[:2]]}] * 2),
    "Alpaca": dumped(*[{"instruction": TURNS[2], "input": "", "output": TURNS[3], "history": [TURNS[:2]]}] * 2),
    "data of a key": dumped({"data": [TURNS, TURNS]}),
    "CrossWOZ": dumped(
        {"391": {"messages": messages(("usr", "sys")), "goal": []}, "392": {"messages": messages(("usr", "sys"))}},
        indent=1,
    ),
    "Schema-Guided": dumped(*[{"turns": messages(("USER", "SYSTEM"), ("speaker", "utterance"))}] * 2, indent=2),
    "no speakers": dumped([{"messages": [{"message": text} for text in TURNS]}] * 2),
    "one after another": dumped([TURNS], indent=1) + dumped([TURNS], indent=1),
    "lists one after another": dumped([TURNS], [TURNS]),
    "objects indented": dumped({"messages": messages()}, {"messages": messages()}, indent=2),
    "tabs": ("\t".join(TURNS) + "\n") * 2,
    "blank lines": ("\n".join(TURNS) + "\n\n") * 2,
    "named lines": "\n\n".join(
        ["\n".join(f"{'用户' if n % 2 == 0 else '助手'}：{t}" for n, t in enumerate(TURNS))] * 2
    ),
    "E and M": ("E\n" + "".join(f"M {text}\n" for text in TURNS)) * 2,
    "__eou__": (" __eou__ ".join(TURNS) + " __eou__\n") * 2,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_turns(name, tmp_path):
    suffix = ".json" if "lists one after" in name else ".jsonl" if FORMATS[name][0] in "[{" else ".txt"
    found, findings = read(written(tmp_path, FORMATS[name], f"talks{suffix}"))
    assert found == [TALK, TALK] and findings.counts["dialogues"] == 2
    assert findings.example == tuple((one.role, one.text) for one in TALK)
    assert read(written(tmp_path, bz2.compress(FORMATS[name].encode()), f"talks{suffix}.bz2"))[0] == found


def test_questions_and_replies_in_tables(tmp_path):
    two = [alternate(TURNS[:2]), alternate(TURNS[2:])]
    rows = "".join(f'"{a}","{b}"\n' for a, b in PAIRED)
    assert read(written(tmp_path, "prompt,response\n" + rows, "t.csv"))[0] == two
    assert read(written(tmp_path, "问题;回答\n" + rows.replace('","', '";"'), "t.csv"))[0] == two
    assert read(written(tmp_path, rows, "t.csv"))[0] == two
    assert read(written(tmp_path, "question\tanswer\n" + "".join(f"{a}\t{b}\n" for a, b in PAIRED), "t.tsv"))[0] == two
    assert read(written(tmp_path, "".join(f"{a}|{b}\n" for a, b in PAIRED), "t.txt"), delimiter="|")[0] == two
    instructed = {"instruction": "Translate.", "input": "cat", "output": "猫", "system": "Be brief."}
    assert read(written(tmp_path, dumped(instructed)))[0] == [
        (Message("system", "Be brief."), Message("user", "Translate.\ncat"), Message("assistant", "猫"))
    ]
    for text in ("just one line of prose\n", "prose, with commas\nand, more, of them\n", "a,b,c\n1,2,3\n"):
        with pytest.raises(InputError, match="expected JSON, tab-separated turns"):
            read(written(tmp_path, text, "t.txt"))


@pytest.mark.parametrize(
    ("names", "roles"),
    [
        (["developer", "user", "assistant"], ["system", "user", "assistant"]),
        (["gpt", "human", "gpt"], ["assistant", "user", "assistant"]),
        (["bot", "user", "bot"], ["assistant", "user", "assistant"]),
        (["user", "tool", "assistant"], ["user", "tool", "assistant"]),
        (["human", "observation", "gpt"], ["user", "tool", "assistant"]),
        (["user", "function", "assistant"], ["user", "tool", "assistant"]),
        (["system", "user"], ["system", "user"]),
        (["user", "system", "user", "system"], ["user", "assistant", "user", "assistant"]),
    ],
)
def test_speakers_are_never_reversed(names, roles, tmp_path):
    row = {"messages": [{"role": name, "content": f"t{n}"} for n, name in enumerate(names)]}
    ((dialogue,), findings) = read(written(tmp_path, dumped(row)))
    assert [one.role for one in dialogue] == roles
    assert [one.learned for one in dialogue] == [role != "tool" for role in roles]
    assert findings.speakers == dict(zip(names, roles, strict=True))


def test_unknown_speakers_are_refused_by_name_or_mapped(tmp_path):
    row = {"turns": [["客服", "您好"], ["客户", "你好"], ["机器", "{}"]]}
    path = written(tmp_path, dumped(TURNS, row))
    with pytest.raises(InputError, match=r"record 2 .*'客服', '客户', '机器'.*--roles user=客服,assistant=客户"):
        read(path)
    found, findings = read(path, "user=客户，assistant=客服,tool=机器")
    assert [(one.role, one.learned) for one in found[1]] == [("assistant", True), ("user", True), ("tool", False)]
    assert findings.who_is_who() == "客户 = user, 客服 = assistant, 机器 = tool"
    kept, findings = read(path, skip_bad=True)
    assert kept == [TALK] and findings.counts["records_skipped"] == 1
    bare = written(tmp_path, dumped([["客户", "你好"], ["客服", "您好"], ["客户", "再见"]]))
    with pytest.raises(InputError, match="'客户', '客服'"):
        read(bare)
    for wrong in ("客户=user", "user", "user=a,assistant=a", "nobody=a", "user="):
        with pytest.raises(InputError, match="roles: found"):
            parse_roles(wrong)


def test_rows_that_say_more_are_honoured_or_counted(tmp_path):
    rows = [
        {"system": "Be kind.", "messages": messages(), "tools": [{"name": "f"}]},
        {"messages": [*messages()[:3], {**messages()[3], "weight": 0}]},
        {"messages": messages(), "weight": 0},
        {
            "messages": [
                *messages()[:1],
                {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]},
                *messages()[1:2],
            ]
        },
    ]
    (first, second, third), findings = read(written(tmp_path, dumped(*rows)))
    assert first == (Message("system", "Be kind."), *TALK)
    assert [one.learned for one in second] == [True, True, True, False]
    assert [(one.role, one.learned) for one in third] == [("user", True), ("assistant", False), ("assistant", True)]
    counted = {
        "dialogues": 3,
        "dialogues_with_tools": 1,
        "dialogues_of_weight_0": 1,
        "turns_of_tools": 1,
        "turns_not_learned": 2,
    }
    assert counted.items() <= findings.counts.items()
    for bad, found in (
        ({"messages": messages(), "weight": 0.5}, "'weight' = 0.5"),
        ({"system": "a", "messages": [{"role": "system", "content": "b"}, *messages()]}, "beside a system message"),
        ({"system": 3, "messages": messages()}, "'system' = a number"),
        ({"messages": [*messages(), {"content": "who?"}]}, "turn 5 without a speaker"),
        ({"prompt": "a", "response": "b", "history": "c"}, "'history' = text"),
    ):
        with pytest.raises(InputError, match=found):
            read(written(tmp_path, dumped(bad)))


def test_all_of_a_file_is_read_or_its_trouble_is_placed(tmp_path):
    many = [[["问", "答"]] * 3, [["再问", "再答"]] * 50]
    assert len(read(written(tmp_path, dumped(*many), "two.json"))[0]) == 53
    lines = written(
        tmp_path, "\n".join(dumped([[f"问{n}", f"答{n}"], [f"再问{n}", f"再答{n}"]]) for n in range(100)), "a.jsonl"
    )
    found, _ = read(lines)
    assert len(found) == 100 and {len(one) for one in found} == {4}
    mixed = written(tmp_path, dumped(TURNS, PAIRED, {"messages": messages()}, [TURNS]), "mixed.jsonl")
    assert read(mixed)[0] == [TALK] * 4
    with pytest.raises(InputError, match=r"line 1, column \d+: found something that is no JSON behind document 1"):
        read(written(tmp_path, dumped([TURNS, TURNS]) + "garbage !!! not json", "g.json"))
    with pytest.raises(InputError, match="line 3"):
        read(written(tmp_path, dumped(TURNS, TURNS) + "\ngarbage", "g.jsonl"))


def test_texts_stay_as_they_are_written(tmp_path):
    typed = [["周末去 KTV 吗", "好 走起！  (＾▽＾) 888"], ["오늘 날씨가 정말 좋네요", "네, 그래서 산책을 가려고 해요"]]
    typed += [["今日 は 良い 天気", "สวัสดี ครับ ผม"], ["Hello  there", "two  spaces"]]
    found, findings = read(written(tmp_path, dumped(*typed)))
    assert [[one.text for one in talk] for talk in found] == typed and not findings.counts["files_presegmented"]
    parted = [["你 去 那儿 竟然 不喊 我", "我 们 用 Python 3 写 ， 好 吗 ？"]] * 3
    found, findings = read(written(tmp_path, dumped(*parted)))
    assert [one.text for one in found[0]] == ["你去那儿竟然不喊我", "我们用 Python 3 写，好吗？"]
    assert findings.counts["files_presegmented"] == 1


def slow_join(text):
    """The definition, space by space: kept but beside wide punctuation and between two characters of scripts without spaces."""

    def unspaced(char):
        return "\u3400" <= char <= "\u9fff" or "\u3040" <= char <= "\u30ff"

    def wide(char):
        return "\u3001" <= char <= "\u303f" or "\uff00" <= char <= "\uffef"

    out = ""
    for n, char in enumerate(text):
        left, right = text[:n].rstrip(" ")[-1:], text[n:].lstrip(" ")[:1]
        is_inner = char == " " and left and right and not (left.isspace() or right.isspace())
        goes = (
            wide(left) or wide(right) or (unspaced(left) and unspaced(right)) or text[n - 1] == " "
            if is_inner
            else False
        )
        out += "" if goes else char
    return out.strip()


@given(st.text("我们ア가a1 ，。（　.é\n", max_size=12))
def test_joining_and_normal_forms_are_their_definitions(text):
    assert join_pieces(text) == slow_join(text)
    assert normalize(text) == unicodedata.normalize("NFKC", text)


@given(st.lists(st.sampled_from("天地玄黄宇宙洪荒，"), min_size=3, max_size=30))
def test_spaces_between_characters_are_told_from_typed_ones(characters):
    assert not is_presegmented(["".join(characters)])
    if sum(char != "，" for char in characters) >= 2 and "，" not in characters:
        assert is_presegmented([" ".join(characters)])


def test_repetitions_are_counted_across_the_split_too(tmp_path):
    talks = [["a", "b"], ["A", " b"], ["a!", "b 2"], ["c", "d"]]
    files = DialogueFiles(written(tmp_path, dumped(*talks)))
    assert (files.findings.counts["dialogues_repeated"], files.findings.counts["dialogues_nearly_repeated"]) == (1, 1)
    held = [alternate(["C?", "d."]), alternate(["a", "b"]), alternate(["x", "y"])]
    found = {"dialogues": 1, "openings": 1, "replies": 1, "dialogues nearly": 1}
    assert contamination(files, held) == found == contamination(list(files), held)


def test_files_are_held_out_by_reply_as_well(tmp_path):
    rows = [[f"问{n}甲", "好的" if n % 3 == 0 else f"答{n}乙"] for n in range(900)]
    sources = TASK.sources(RunConfig(data=[written(tmp_path, dumped(*rows))]), ChatSettings(), 0)
    learned = {one.text for talk in sources.train for one in talk}
    assert len(sources.held_out) > 5 and "好的" in learned
    assert not [talk for talk in sources.held_out if talk[0].text in learned or talk[-1].text in learned]
    left_out = sources.findings.counts["dialogues_of_said_replies"]
    assert left_out and len(sources.train) + len(sources.held_out) + left_out == 900
    assert not any(sources.shared[name] for name in ("dialogues", "openings", "replies"))
    rows = [[f"问{n}甲", f"答{n % 5}"] for n in range(900)]  # always the same words: they judge, and it is said
    sources = TASK.sources(RunConfig(data=[written(tmp_path, dumped(*rows))]), ChatSettings(), 0)
    assert sources.shared["replies"] == len(sources.held_out) > 5


def test_files_too_small_to_hold_out_are_checked_all_the_same(tmp_path):
    path = written(tmp_path, dumped(*[TURNS] * 400))
    config, settings = RunConfig(data=[path]), ChatSettings()
    with pytest.raises(InputError, match="400 dialogues, 399 of them the same as another: too few different ones"):
        TASK.sources(config, settings, 0)
    train, findings, _ = TASK.check(config, settings)
    assert len(train) == 400 and findings["training files"].counts["dialogues"] == 400
    one = RunConfig(data=[written(tmp_path, dumped(TURNS), "one.jsonl")])
    assert len(TASK.check(one, settings)[0]) == 1


def test_settings_say_who_is_who_and_how_files_are_written(tmp_path):
    rows = dumped(*[{"turns": [["甲", f"问{n}，你好吗"], ["乙", f"答{n}，我很好"]]} for n in range(9)])
    path = written(tmp_path, rows.encode("gb18030"))
    settings = ChatSettings(roles="user=乙,assistant=甲", encoding="gb18030")
    assert [one.role for one in TASK.check(RunConfig(data=[path]), settings)[0][0]] == ["assistant", "user"]
    assert "encoding" not in settings.to_dict() and ChatSettings.from_dict(settings.to_dict()).roles == settings.roles
    with pytest.raises(InputError, match="roles"):
        ChatSettings(roles="甲")


@pytest.mark.parametrize(
    ("encoding", "question", "reply"),
    [
        ("cp932", "昨日は友達と一緒に映画を見に行きましたか。", "はい、とても面白かったです。また行きたいですね。"),
        ("euc_kr", "어제 친구와 함께 영화를 보러 갔습니까?", "네, 아주 재미있었어요. 또 가고 싶습니다."),
        ("big5", "這個商品比我想像的要小，你覺得怎麼樣？", "樣子還可以，不過有點失望，還想再看一看。"),
    ],
)
def test_older_code_pages_are_told_and_named(encoding, question, reply, tmp_path):
    path = written(tmp_path, dumped(*[[question, reply]] * 3).encode(encoding), "old.jsonl")
    files = DialogueFiles(path)
    assert [one.text for one in files[0]] == [question, reply]
    (named,) = files.findings.encodings.values()
    assert codecs.lookup(named).name in (encoding, "cp949")
    decided = DialogueFiles(path, known=Format(encoding=encoding))
    assert [one.text for one in decided[0]] == [question, reply]


def test_whoever_waits_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("jieyue.data.textstream.BLOCK", 100)
    told = []
    path = written(tmp_path, dumped(*[TURNS] * 20))
    list(DialogueFiles(path, progress=lambda name, done, total: told.append((name, done, total))))
    assert told[-1] == (str(path), path.stat().st_size, path.stat().st_size) and len(told) > 20


def test_tool_turns_are_never_learned(tmp_path):
    from jieyue.data.mapped import ANY_TURN, REPLY
    from jieyue.hf.lossless_pieces import learn_lossless_vocabulary, make_lossless_tokenizer
    from jieyue.tasks.chat.rows import encode_dialogues

    tokenizer = make_lossless_tokenizer(learn_lossless_vocabulary([*TURNS, "42"], 60))
    tooled = (Message("user", TURNS[0]), Message("tool", "42", False), Message("assistant", TURNS[1]))
    rows, _ = encode_dialogues([tooled], tokenizer, ChatSettings(), tmp_path / "tokens")
    ids, marks = rows.tokens[0]
    learned = tokenizer.decode(ids[(marks & ANY_TURN) > 0], skip_special_tokens=True)
    assert "42" not in learned and "42" in tokenizer.decode(ids)
    assert (marks & REPLY).any()


@given(
    st.lists(st.text(st.sampled_from("aＡß ﬁ你\0\ufeff\r\n\u0301\u1100\u1161é"), max_size=6), min_size=1, max_size=5)
)
def test_turns_are_compared_alike_alone_and_together(texts):
    from jieyue.data.repeats import keys_of

    together = keys_of(alternate(texts))
    assert together == tuple(key for text in texts for key in keys_of(alternate([text])))
