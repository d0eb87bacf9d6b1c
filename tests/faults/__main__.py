"""Run the fault matrix: ``python -m tests.faults [--seeds N] [--fault NAME…] [--out FILE]``. Needs root.

One line a case, then a table. Exit 1 if any case is not as it should be. With --out verdicts are appended to a file as
they come, and cases that are in it already are not run again: a matrix can be run in pieces.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

from ostrain.drill.faults import FAULTS
from ostrain.drill.text import line, summary
from ostrain.drill.verdict import Verdict
from tests.faults.matrix import DISK, NODES, SPARES, Matrix, as_client, seeds_of
from tests.testbed import Testbed

MOST = ("worker_kill", "agent_kill", "worker_stop", "link_down")


def main() -> int:
    options = _options()
    faults = [FAULTS[name] for name in options.fault or FAULTS]
    wanted = [(fault, seed) for fault in faults for seed in options.seed or seeds_of(fault, options.seeds, MOST)]
    done = _read(options.out)
    known = {(one.fault, one.seed) for one in done}
    todo = [(fault, seed) for fault, seed in wanted if (fault.name, seed) not in known][: options.at_most]
    if todo:
        with Testbed(options.nodes + SPARES, disk=DISK) as bed, as_client(bed):
            matrix = Matrix(bed, _say, nodes=options.nodes)
            matrix.ground.keep = options.keep
            try:
                base = f".base-{options.nodes}.json"
                matrix.measure_base(options.out.with_suffix(base) if options.out else None)
                begun = time.monotonic()
                for number, (fault, seed) in enumerate(todo, 1):
                    if time.monotonic() - begun > options.seconds:
                        break
                    _say(f"[{number}/{len(todo)}] {fault.name}, seed {seed}: {fault.title}")
                    verdict = matrix.case(fault, seed)
                    _say(line(verdict))
                    done.append(verdict)
                    _append(options.out, verdict)
                    if verdict.problems and options.stop:
                        _show_talk(matrix.ground.folder / f"{fault.name}-{seed}")
                        break
            finally:
                matrix.close()
    print(summary(done))
    return 0 if all(one.good for one in done) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="The fault matrix on a testbed")
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="only this one; may be repeated")
    parser.add_argument("--seeds", type=int, default=3, help="cases a fault; with 3 or more ten of the commonest")
    parser.add_argument("--seed", type=int, action="append", help="only this seed; may be repeated")
    parser.add_argument("--out", type=Path, help="file that verdicts are appended to, and known ones taken from")
    parser.add_argument("--nodes", type=int, default=NODES, help="nodes that train, beside the spare")
    parser.add_argument("--at-most", type=int, default=None, help="cases to run this time")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no further case after so long")
    parser.add_argument("--stop", action="store_true", help="stop at the first case that is not as it should be")
    parser.add_argument("--keep", action="store_true", help="leave runs on the nodes as long as the testbed is up")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, flush=True)


def _read(path: Path | None) -> list[Verdict]:
    if path is None or not path.exists():
        return []
    records = [json.loads(text) for text in path.read_text().splitlines()]
    for record in records:
        record.pop("good")
        record.update(problems=tuple(record["problems"]), log_unread=tuple(record["log_unread"]))
    return [Verdict(**record) for record in records]


def _append(path: Path | None, verdict: Verdict) -> None:
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(verdict.as_dict()) + "\n")


def _show_talk(folder: Path) -> None:
    for path in sorted(folder.glob("*.err")):
        print(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
