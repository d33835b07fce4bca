"""Time and memory of every pattern and every map against N, and from which N each is faster than full attention.

    OMP_NUM_THREADS=2 python benchmarks/growth.py [--longest 16384] [--repeats 3] [--out benchmarks/results]

Forward and backward, float32, B = 1, H = 12, D = 64, all keys. Writes growth.json and the section of docs/attention.md. About
ten minutes on two cores; a quiet machine, please.
"""

import argparse
import sys
from pathlib import Path

from write_docs import RESULTS, fill_page

from jieyue.bench.attention import bench_attention


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--longest", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    lengths = [n for n in (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768) if n <= given.longest]

    def say(text):
        print(text, file=sys.stderr)

    report = bench_attention(parts=("curves",), repeats=given.repeats, lengths=lengths, say=say).report()
    print(report.text())
    report.save(given.out, "growth")
    if given.out == RESULTS:
        fill_page("attention.md", "growth")


if __name__ == "__main__":
    main()
