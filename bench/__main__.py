"""``python -m bench [NAME …]``: run the named benchmarks, or list them.

Each prints one JSON line per measurement: what, seconds (median), spread, and the ratio to the named alternative.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def main(names: list[str]) -> int:
    known = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    unknown = [name for name in names if name not in known]
    if not names or unknown:
        for name in unknown:
            print(f"no benchmark {name!r}", file=sys.stderr)
        print("benchmarks: " + ", ".join(known), file=sys.stderr)
        return 2 if unknown else 0
    for name in names:
        sys.argv = [f"bench_{name}"]
        runpy.run_module(f"bench.bench_{name}", run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
