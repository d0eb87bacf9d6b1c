"""Starts the ranks of a comparison and puts their results together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tests.layouts.cases import STEPS, Case

# Relative to the largest entry of each tensor. Sums over ranks round differently, Adam enlarges what is left.
LIMITS = {"losses": 2e-5, "norms": 2e-5, "gradients": 1e-5, "weights": 1e-4}

REPO = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """What all ranks of a case did together. state: kind/name -> flat values; traffic: by rank, by step.

    units: elements of every unit of parameters. agreed: whether all ranks were told the same losses and norms.
    """

    agreed: bool
    losses: np.ndarray
    norms: np.ndarray
    gradients: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    traffic: list[list[dict[str, list[int]]]]
    units: list[int]
    seconds: float


@dataclass(frozen=True)
class Wanted:
    """A case to run up to ``steps``, with a deliberate mistake or none.

    save: folder for a checkpoint after step ``save_at``. load: folder of the checkpoint to go on from.
    """

    case: Case
    breaks: str | None = None
    steps: int = STEPS
    save: str = ""
    save_at: int = 0
    load: str = ""


def run(folder: Path, world: int, wanted: Sequence[Wanted], timeout: float) -> list[Outcome]:
    """Trains all cases, one after the other, on ``world`` workers of msrun (1: this interpreter, no launcher)."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number}-{one.case.name(world)}" for number, one in enumerate(wanted)]
    entries = [{**asdict(one), "name": name} for one, name in zip(wanted, names, strict=True)]
    (folder / "cases.json").write_text(json.dumps(entries))
    launch(folder, world, ["-m", "tests.layouts.worker", str(folder)], timeout)
    return [_outcome(folder / name, world) for name in names]


def launch(folder: Path, world: int, arguments: Sequence[str], timeout: float, **extra: str) -> None:
    """``python ARGUMENTS`` on every rank; AssertionError with the ends of their logs unless all end well in time."""
    msrun = _msrun(world, folder / "logs")
    command = [sys.executable, *arguments] if world == 1 else [*msrun, "python", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MS_", "RANK_"))}
    bin_folder = str(Path(sys.executable).parent)
    environment |= {"PATH": f"{bin_folder}:{environment['PATH']}", "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    with (folder / "output.log").open("wb") as output:
        process = subprocess.Popen(
            command, cwd=REPO, env=environment | extra, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise AssertionError(f"not finished after {timeout} s\n{_tail(folder)}") from None
    if code != 0:
        raise AssertionError(f"workers ended with exit code {code}\n{_tail(folder)}")


def _msrun(world: int, logs: Path) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    counts = [f"--worker_num={world}", f"--local_worker_num={world}"]
    return ["msrun", *counts, f"--master_port={port}", "--join=True", f"--log_dir={logs}"]


def _tail(folder: Path) -> str:
    logs = [folder / "output.log", *sorted((folder / "logs").glob("worker_*.log"))]
    return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs if log.exists())


def _outcome(folder: Path, world: int) -> Outcome:
    ranks = [dict(np.load(folder / f"rank-{rank}.npz")) for rank in range(world)]
    told = [(rank["losses"].tobytes(), rank["norms"].tobytes()) for rank in ranks]
    return Outcome(
        agreed=len(set(told)) == 1,
        losses=ranks[0]["losses"],
        norms=ranks[0]["norms"],
        gradients=_joined(ranks, "gradient/"),
        state=_joined(ranks, "state/"),
        traffic=[json.loads(str(rank["traffic"])) for rank in ranks],
        units=[int(elements) for elements in ranks[0]["units"]],
        seconds=max(float(rank["seconds"]) for rank in ranks),
    )


def _joined(ranks: list[dict[str, np.ndarray]], prefix: str) -> dict[str, np.ndarray]:
    parts: dict[str, dict[int, np.ndarray]] = {}
    for rank in ranks:
        for key, values in rank.items():
            if key.startswith(prefix):
                name, start = key.removeprefix(prefix).rsplit("/", 1)
                parts.setdefault(name, {})[int(start)] = values
    return {name: np.concatenate([found[start] for start in sorted(found)]) for name, found in parts.items()}


def differences(one: Outcome, other: Outcome) -> dict[str, float]:
    """Largest relative difference of losses, norms, gradients (of the largest entry of each) and weights."""
    return {
        "losses": float(np.max(np.abs(one.losses - other.losses) / np.abs(other.losses))),
        "norms": float(np.max(np.abs(one.norms - other.norms) / np.abs(other.norms))),
        "gradients": _largest(one.gradients, other.gradients),
        "weights": _largest(
            {k: v for k, v in one.state.items() if k.startswith("model/")},
            {k: v for k, v in other.state.items() if k.startswith("model/")},
        ),
    }


def _largest(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    assert one.keys() == other.keys(), f"tensors differ: {sorted(one.keys() ^ other.keys())[:5]}"
    worst = 0.0
    for name, values in other.items():
        assert one[name].shape == values.shape, f"{name}: {one[name].shape} against {values.shape}"
        scale = max(float(np.abs(values).max()), 1e-12)
        worst = max(worst, float(np.abs(one[name] - values).max()) / scale)
    return worst


def equal(one: Outcome, other: Outcome) -> bool:
    """Bit for bit: losses, norms, weights and optimizer states."""
    told = [(case.losses.tobytes(), case.norms.tobytes()) for case in (one, other)]
    if not (one.agreed and other.agreed and told[0] == told[1]):
        return False
    return all(np.array_equal(one.state[name], values) for name, values in other.state.items())


def check(one: Outcome, reference: Outcome) -> None:
    """AssertionError where they differ by more than a layout may."""
    assert one.agreed, "over the limits: ranks disagree on losses or gradient norms"
    found = differences(one, reference)
    over = {name: f"{value:.1e}" for name, value in found.items() if not value <= LIMITS[name]}
    assert not over, f"over the limits {LIMITS}: {over}"
