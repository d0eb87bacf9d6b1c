"""``python -m tests.layouts [2] [4] [moves]``: all of what tests/layouts shows by examples; a line each.

2, 4: every layout of that many ranks in every way against one process, about 15 minutes together on two cores. moves:
checkpoints of six layouts, each continued under all six. Exit code 1 if one is over the limits of
tests/layouts/compare.py.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.layouts.cases import WAYS, Case, layouts
from tests.layouts.compare import LIMITS, Wanted, differences, equal, run
from tests.layouts.moves import SIX, difference, goes_on_bit_for_bit, move, name


def matrix(folder: Path, world: int) -> bool:
    """Whether every layout of ``world`` ranks trains as one process does."""
    one = run(folder / "one", 1, [Wanted(Case())], 300)[0]
    good = True
    for recompute, accumulation in WAYS:
        cases = [replace(case, recompute=recompute, accumulation=accumulation) for case in layouts(world)]
        done = run(folder / f"{world}-{recompute}-{accumulation}", world, [Wanted(case) for case in cases], 1800)
        for case, outcome in zip(cases, done, strict=True):
            found = differences(outcome, one)
            fine = all(value <= LIMITS[key] for key, value in found.items())
            same = " = dp bit for bit" if case.sp == 1 and equal(outcome, done[0]) else ""
            row = " ".join(f"{key} {value:.1e}" for key, value in found.items())
            print(f"{'ok  ' if fine else 'FAIL'} {case.name(world):34s} {row}{same}", flush=True)
            good = good and fine
    return good


def moves(folder: Path) -> bool:
    """Whether every layout goes on from a checkpoint of every other; from its own bit for bit."""
    straight, moved = move(folder, list(itertools.product(range(len(SIX)), repeat=2)))
    good = True
    for pair, after in moved.items():
        before = straight[pair[0]]
        worst, same = difference(before, after), goes_on_bit_for_bit(before, after)
        fine = worst <= LIMITS["losses"] and (same or pair[0] != pair[1])
        print(f"{'ok  ' if fine else 'FAIL'} {name(pair):60s} losses {worst:.1e}{' bit for bit' if same else ''}")
        good = good and fine
    return good


def main(words: list[str]) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = [moves(folder) if word == "moves" else matrix(folder, int(word)) for word in words]
    return int(not all(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["2", "4", "moves"]))
