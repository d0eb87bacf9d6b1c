"""How long the command line takes to answer, beside a bare ``python -c pass`` and beside importing MindSpore.

The budget: ``ostrain --help`` and ``ostrain status`` under 0.25 s, importing neither MindSpore nor paramiko.
Exits with 1 when an answer is over the budget or a forbidden module was imported.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

RUNS = 9
BUDGET = 0.25
FORBIDDEN = ("mindspore", "paramiko", "fabric", "numpy")


def seconds(argv: list[str]) -> list[float]:
    taken = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)
        taken.append(time.perf_counter() - begin)
    return taken


def imported(argv: list[str]) -> list[str]:
    """Which forbidden modules a command imports."""
    told = subprocess.run([sys.executable, "-X", "importtime", *argv], capture_output=True, text=True, timeout=60)
    modules = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in told.stderr.splitlines() if "|" in line}
    return sorted(modules.intersection(FORBIDDEN))


def main() -> int:
    bare = statistics.median(seconds([sys.executable, "-c", "pass"]))
    print(json.dumps({"what": "python -c pass", "seconds": round(bare, 4)}))
    failed = False
    for words in (["--help"], ["status"], ["ps"]):
        taken = seconds([sys.executable, "-m", "ostrain", *words])
        median, wrong = statistics.median(taken), imported(["-m", "ostrain", *words])
        failed |= median > BUDGET or bool(wrong)
        spread = [round(min(taken), 4), round(max(taken), 4)]
        row = {"what": "ostrain " + " ".join(words), "seconds": round(median, 4), "spread": spread}
        row |= {"times_bare_python": round(median / bare, 2), "budget": BUDGET, "forbidden": wrong}
        print(json.dumps(row))
    heavy = statistics.median(seconds([sys.executable, "-c", "import mindspore"]))
    print(json.dumps({"what": "import mindspore", "seconds": round(heavy, 3)}))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
