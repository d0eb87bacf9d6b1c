"""``python -m tests.fuzz [--examples N] [TARGET …]``: a long look, elsewhere each time. Exits with 1 at a find."""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from tests.fuzz.run import fuzz
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    options = parser.parse_args()
    unknown = [name for name in options.targets if name not in TARGETS]
    if unknown:
        parser.error(f"no target {unknown[0]!r}; there are {', '.join(TARGETS)}")
    found = 0
    for name in options.targets or TARGETS:
        began = time.monotonic()
        try:
            fuzz(TARGETS[name], options.examples, repeatable=False)
            print(f"{name}: {options.examples} examples in {time.monotonic() - began:.1f} s, nothing found", flush=True)
        except Exception:
            found += 1
            traceback.print_exc()
            print(f"{name}: found something", flush=True)
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
