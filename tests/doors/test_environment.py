"""``jieyue doctor`` without a task tells what is here, and nothing that names a person or a place."""

import getpass
import json
import platform

from test_cli import jieyue

from jieyue.run.environment import environment


def test_doctor_alone_tells_versions_engine_and_extras():
    told = jieyue("doctor")
    assert told.returncode == 0, told.stderr
    for part in ("torch", "transformers", "engine", "allocator", "memory available", "tested:", "jieyue[serve]"[:6]):
        assert part in told.stdout, part
    found = json.loads(jieyue("doctor", "--json").stdout)
    assert [section["title"] for section in found["sections"]] == ["Versions", "Machine", "Attention", "Extras"]


def test_it_names_no_host_user_or_folder():
    text = environment().text()
    assert platform.node() not in text.split() and f"/{getpass.getuser()}" not in text and "/home" not in text


def test_the_engine_told_is_the_one_that_is_picked():
    import torch

    from jieyue.attention import Call, full, pick
    from jieyue.attention.engines import native

    q = torch.zeros(1, 1, 1024, 64)
    facts = {item.what: item.value for item in environment().sections[2].items if hasattr(item, "what")}
    assert facts["engine"] == pick(Call(q, q, q, full())).name
    assert facts.get("kernel build") == (native.builds()[0] if facts["engine"] == "native" else None)
