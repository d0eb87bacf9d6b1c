"""``python -m tests.parity CASE_DIR…``: one JSON line a case; exit 0 all within tolerance, 1 not, 2 cannot be run.

A line: case, kind, verdict (pass, fail, error), where tolerances came from, the largest absolute and relative
difference over all tensors, the tensor nearest its tolerance, what failed, and per tensor max_abs, max_rel, tol, ok.
What outputs.json holds is compared value by value and listed in the same way, as ``outputs.json/…``.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.exits import PayloadError
from tests.parity.cases import Case, CaseError, load_case
from tests.parity.compare import compare, summary
from tests.parity.tables import compare_tables
from tests.parity.tolerance import Tolerances

USAGE = "usage: python -m tests.parity CASE_DIR…"
# Part of a case's class -> its runner. These come first: their classes name models and layers too.
PLAIN = {
    "iddpm": "iddpm",
    "datasets.bucket": "buckets",
    "mask generator": "masks_prompts",
    "clean_caption": "text_cleaning",
    "sin-cos tables": "sincos",
    "videoautoencoderkl": "vae2d",
    "vae_temporal.vae_temporal": "vae_temporal",
    "videoautoencoderpipeline": "vae_pipeline",
}
# Cases that say their kind themselves (README_B.md of the golden data): kind -> its runner.
NAMED = {
    "vae_loss": "losses",
    "gan_losses": "losses",
    "lpips": "lpips",
    "discriminator": "discriminator",
    "psnr_ssim": "psnr_ssim",
    "t5": "t5",
}


def kind_of(config: dict[str, Any]) -> str:
    """Which runner a case belongs to, by the class it was recorded from. CaseError for a kind not known."""
    if config.get("kind") in NAMED:
        return NAMED[config["kind"]]
    cls = str(config.get("cls", config.get("class", "")))
    low = cls.lower()
    for part, kind in PLAIN.items():
        if part in low:
            return kind
    if "stdit3" in low and "traces" in config:
        return "trace"
    if "rflow" in low or "schedulers.rf" in low:
        return "rflow"
    if "stdit" in low:
        return "stdit3" if "stdit3" in low else "stdit"
    if "layers.blocks" in low:
        return "layers"
    if "transforms" in low and "items" in config:
        return "transforms"
    raise CaseError(f"no runner for cases of class {cls or '(none given)'!r} (case {config.get('case')!r})")


def run_case(path: Path) -> dict[str, Any]:
    """The report of one case. CaseError where it cannot be run."""
    case = load_case(path)
    kind = kind_of(case.config)
    if not case.outputs and not case.expected:
        raise CaseError("no recorded outputs")
    runner = importlib.import_module(f"tests.parity.{kind}")
    tolerances = Tolerances(kind, path, case.config.get("case"), case.config.get("precision"))
    rows: dict[str, dict[str, Any]] = {}
    if case.outputs:
        rows |= compare(_computed(runner.run, case), case.outputs, tolerances, case.slack)
    if case.expected:
        tables: Callable[[Case], dict[str, Any]] = getattr(runner, "tables", lambda _case: {})
        rows |= compare_tables(_computed(tables, case), case.expected, getattr(runner, "ROUNDED", {}))
    head = {"case": case.name, "kind": kind}
    return head | summary(rows) | {"tolerances": tolerances.source, "tensors": rows}


def _computed(run: Callable[[Case], dict[str, Any]], case: Case) -> dict[str, Any]:
    try:
        result = run(case)
    except KeyError as error:
        raise CaseError(f"the case has no {error}") from error
    except PayloadError as error:
        raise CaseError(f"{error.what}: {error.why}") from error
    except ValueError as error:
        raise CaseError(str(error)) from error
    return result


def main(arguments: list[str]) -> int:
    if not arguments or any(argument.startswith("-") for argument in arguments):
        print(USAGE, file=sys.stderr)
        return 2
    status = 0
    for argument in arguments:
        path = Path(argument)
        try:
            report = run_case(path)
        except CaseError as error:
            report = {"case": path.resolve().name, "verdict": "error", "error": str(error), "path": str(path)}
        print(json.dumps(report, allow_nan=False), flush=True)
        status = max(status, {"pass": 0, "fail": 1, "error": 2}[report["verdict"]])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
