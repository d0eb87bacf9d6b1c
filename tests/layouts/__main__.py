"""``python -m tests.layouts [WORLD …]``: every layout of 2 and 4 ranks in every way against one process; a table.

About 15 minutes on two cores. Exit code 1 if a case is over the limits of tests/layouts/compare.py.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.layouts.cases import WAYS, Case, layouts
from tests.layouts.compare import LIMITS, Wanted, differences, equal, run


def main(worlds: list[int]) -> int:
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one = run(folder / "one", 1, [Wanted(Case())], 300)[0]
        for world in worlds:
            for recompute, accumulation in WAYS:
                cases = [replace(case, recompute=recompute, accumulation=accumulation) for case in layouts(world)]
                place = folder / f"{world}-{recompute}-{accumulation}"
                done = run(place, world, [Wanted(case) for case in cases], 1800)
                for case, outcome in zip(cases, done, strict=True):
                    found = differences(outcome, one)
                    bad = any(not value <= LIMITS[name] for name, value in found.items())
                    failed += bad
                    same = " = dp bit for bit" if case.sp == 1 and equal(outcome, done[0]) else ""
                    row = " ".join(f"{name} {value:.1e}" for name, value in found.items())
                    print(f"{'FAIL' if bad else 'ok  '} {case.name(world):34s} {row}{same}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main([int(word) for word in sys.argv[1:]] or [2, 4]))
