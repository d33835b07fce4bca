"""The server under load: clients that stream at once, first-token times, tokens a second, memory; eight clients against one.

    python benchmarks/serving.py [--model small] [--clients 32] [--seconds 60] [--tokens 64] [--threads 2] [--out FOLDER]

A model of random weights answers over a real socket; clients are another process. One JSON line a row; with ``--out`` also a
report, ``serving.json``. Tokens are counted by the server (/metrics). Goals: no error, memory flat over the run, throughput
of eight clients at least three times that of one.
"""

import argparse
import json
import multiprocessing
import os
import socket
import threading
import time
import urllib.request
from pathlib import Path

from jieyue import machine
from jieyue.report import Report

MESSAGE = {"messages": [{"role": "user", "content": "hello there, how are you today?"}], "stream": True}


def client(address, until, tokens, found):
    import httpx2

    asked = MESSAGE | {"max_tokens": tokens, "min_tokens": tokens}
    with httpx2.Client(timeout=120) as http:
        while time.time() < until:
            started, first, count, error = time.time(), None, 0, None
            try:
                with http.stream("POST", address + "/v1/chat/completions", json=asked) as answer:
                    if answer.status_code != 200:
                        error = answer.status_code
                    for line in answer.iter_lines():
                        if line.startswith("data: {") and '"content": ""' not in line:
                            first = first or time.time() - started
                            count += 1
            except httpx2.HTTPError as wrong:
                error = repr(wrong)
            found.append((first, count, error))


def clients(address, number, seconds, tokens, pipe):
    found, until = [], time.time() + seconds
    threads = [threading.Thread(target=client, args=(address, until, tokens, found)) for _ in range(number)]
    started = time.time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.send((found, time.time() - started))


def resident(pid):
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmRSS"))


def tokens_said(address):
    """Tokens of all replies so far, as the server counts them."""
    text = urllib.request.urlopen(address + "/metrics").read().decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("jieyue_reply_tokens_total"))


def server(name, port, threads):
    import torch

    from jieyue.data.history import template_for
    from jieyue.hf.causal_presets import build_causal
    from jieyue.hf.lossless_pieces import learn_lossless_vocabulary, make_lossless_tokenizer
    from jieyue.serving.app import build_app
    from jieyue.serving.bounds import Bounds
    from jieyue.serving.chat_model import ChatModel
    from jieyue.serving.guard import allowed_hosts
    from jieyue.serving.listening import BoundedServer, listen

    torch.set_num_threads(threads)
    tokenizer = make_lossless_tokenizer(learn_lossless_vocabulary(["hello there, how are you today?"] * 3, 50))
    tokenizer.chat_template = template_for(tokenizer)
    talker = ChatModel(name, build_causal(name, tokenizer).eval(), tokenizer, Bounds())
    app = build_app([talker], hosts=allowed_hosts("127.0.0.1", port))
    BoundedServer(app, Bounds(), ready=lambda: None).run(listen("127.0.0.1", port))


def measured(address, number, seconds, tokens, pid):
    ours, pipe = multiprocessing.Pipe()
    worker = multiprocessing.Process(target=clients, args=(address, number, seconds, tokens, pipe))
    before = tokens_said(address)
    worker.start()
    memory = []
    while not ours.poll(1.0):
        memory.append(resident(pid))
    found, taken = ours.recv()
    worker.join()
    said = tokens_said(address) - before
    firsts = sorted(first for first, _, error in found if first is not None and not error)
    third = max(1, len(memory) // 3)
    return {
        "clients": number, "seconds": taken, "replies": len(found), "errors": sum(bool(error) for *_, error in found),
        "tokens_per_second": said / taken,
        "first_token_p50": firsts[len(firsts) // 2], "first_token_p95": firsts[int(len(firsts) * 0.95)],
        "resident_first_third": max(memory[:third]), "resident_last_third": max(memory[-third:]),
    }  # fmt: skip


def tell(rows, given):
    report = Report(
        "Serving: clients that stream at once", f"model {given.model}, random weights, {given.threads} threads"
    )
    section, last = report.section("Throughput"), rows[-1]
    times = rows[1]["times_one_client"]
    section.fact("eight clients against one", times, "times", f"goal 3: {'met' if times >= 3 else 'missed'}")
    section.fact("errors", sum(row["errors"] for row in rows), how="goal 0")
    grown = last["resident_last_third"] / last["resident_first_third"] - 1
    section.fact("resident memory, last third against first", grown, "share", f"{given.clients} clients")
    columns = ["clients", ("time", "seconds"), "replies", "errors", "tokens a second", ("first token, median", "seconds"),
               ("first token, p95", "seconds"), ("resident", "bytes")]  # fmt: skip
    names = ("clients", "seconds", "replies", "errors", "tokens_per_second", "first_token_p50", "first_token_p95",
             "resident_last_third")  # fmt: skip
    section.table(columns, [[row[name] for name in names] for row in rows])
    section = report.section("Machine")
    for what, value in machine.describe().items():
        section.fact(what, value, "bytes" if what.endswith("_bytes") else "")
    report.save(given.out, "serving")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="small")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a folder for serving.json")
    given = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    worker = multiprocessing.Process(target=server, args=(given.model, port, given.threads))
    worker.start()
    assert worker.pid is not None
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.2)
    address = f"http://127.0.0.1:{port}"
    short = min(15.0, given.seconds)
    rows = [measured(address, number, short, given.tokens, worker.pid) for number in (1, 8)]
    rows[1]["times_one_client"] = rows[1]["tokens_per_second"] / rows[0]["tokens_per_second"]
    rows.append(measured(address, given.clients, given.seconds, given.tokens, worker.pid))
    for row in rows:
        print(json.dumps({"model": given.model, "cores": os.cpu_count(), **row}), flush=True)
    if given.out:
        tell(rows, given)
    worker.terminate()
    worker.join()


if __name__ == "__main__":
    main()
