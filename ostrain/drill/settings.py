"""The job as it is rehearsed: the user's own, made short, supervised, its checkpoints safe from the loss of a node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ostrain.drill.faults import FAULTS, Fault
from ostrain.errors import OstrainError, SpecError
from ostrain.spec import check_runnable, load_job
from ostrain.spec.load import LoadedJob
from ostrain.states import ExitCode

TRAINED = ("train", "train_vae")
BACKENDS = ("local", "ssh")
LONGEST_HANG = 60.0  # a job may wait half an hour for a hang; a rehearsal does not
LONGEST_SILENCE = 10.0  # seconds without an answer after which a node of a rehearsal is lost
MAX_NAME = 63
TIMED_EVERY = 10  # models/trainer.py: steps between two of which the collectives are timed on Ascend


@dataclass(frozen=True)
class Rehearsed:
    """What every run of a drill has in common. ``settings`` are ``--set`` texts; every: steps between checkpoints."""

    job: str
    name: str
    cluster: str
    backend: str
    device: str
    settings: tuple[str, ...]
    steps: int
    every: int
    nodes: int
    spares: int
    hang_timeout: float
    node_timeout: float

    def of(self, fault: Fault | None, port: int) -> tuple[str, ...]:
        """The settings of one run; without a fault those of the undisturbed one."""
        if fault is None:
            return (*self.settings, "restart.max=0", "restart.spares=0")
        spares = self.spares if fault.may_use_spare else 0
        return (*self.settings, f"restart.spares={spares}", *fault.settings(port))

    def smaller(self, fault: Fault) -> bool | None:
        """Whether the job has to go on with fewer nodes after this fault; None: it may."""
        if self.spares and fault.may_use_spare:
            return False
        return {"yes": True, "no": False, "maybe": None}[fault.loses_node]

    def impossible(self, fault: Fault) -> str:
        """Why a fault cannot be rehearsed with this job at all; empty where it can."""
        if self.smaller(fault) is not False and self.nodes < 2:
            return "one node and no spare: nothing would be left to go on with"
        least = self.every + 2 + self.watched(fault)
        if self.steps < least:
            return f"it has to be watched for {self.watched(fault)} steps: --steps {least} or more"
        return ""

    def watched(self, fault: Fault) -> int:
        """Steps to watch after a fault before it is mended. On Ascend ranks time every tenth step only."""
        rare = fault.expect.straggler and self.device == "Ascend"
        return fault.expect.steps * (TIMED_EVERY if rare else 1)


def rehearse_job(job: Path, overrides: Sequence[str], *, steps: int, every: int) -> Rehearsed:
    """The job of a drill. Raises OstrainError where a drill of it makes no sense."""
    loaded = load_job(job, overrides)
    _refuse(loaded, steps, every)
    restart, nodes = loaded.job.restart, loaded.job.nodes
    left = len(loaded.inventory.nodes) - nodes
    hang = min(restart.hang_timeout or LONGEST_HANG, LONGEST_HANG)
    silence = min(restart.node_timeout, LONGEST_SILENCE)
    task = loaded.job.task
    name = f"{loaded.job.name[: MAX_NAME - len('-drill')]}-drill"
    settings = [
        *overrides,
        f"name={name}",
        f"{task}.steps={steps}",
        f"{task}.epochs=null",
        f"{task}.checkpoint.every={every}",
        f"{task}.checkpoint.every_epochs=null",
        f"restart.max={max(restart.max, 5)}",
        f"restart.backoff={min(restart.backoff, 1.0)}s",
        f"restart.hang_timeout={hang}s",
        f"restart.node_timeout={silence}s",
        "restart.shrink=true",
    ]
    if nodes > 1:
        settings.append(f"{task}.checkpoint.copies={max(2, loaded.job.config.checkpoint.copies)}")  # type: ignore[attr-defined]
    rehearsed = Rehearsed(
        job=str(job),
        name=name,
        cluster=loaded.inventory.name,
        backend=loaded.inventory.backend,
        device=loaded.inventory.device,
        settings=tuple(settings),
        steps=steps,
        every=every,
        nodes=nodes,
        spares=max(restart.spares, min(1, left)),
        hang_timeout=hang,
        node_timeout=silence,
    )
    _check(job, rehearsed)
    return rehearsed


def _check(job: Path, rehearsed: Rehearsed) -> None:
    """The job as it will be submitted has to be valid, too: better told now than after the first run."""
    problems = check_runnable(load_job(job, rehearsed.of(FAULTS["worker_kill"], 0)))
    if problems:
        raise SpecError(problems)


def _refuse(loaded: LoadedJob, steps: int, every: int) -> None:
    if loaded.job.task not in TRAINED:
        raise OstrainError(
            f"a drill needs a job that trains and writes checkpoints; this one is for {loaded.job.task}",
            next_step=f"name a job with one of {', '.join(TRAINED)}",
            exit_code=ExitCode.USAGE,
        )
    backend = loaded.inventory.backend
    if backend not in BACKENDS:
        raise OstrainError(
            f"faults cannot be made on nodes behind {backend}",
            why="a drill has to reach every node by itself",
            next_step=f"rehearse on an inventory with backend {' or '.join(BACKENDS)}",
            exit_code=ExitCode.USAGE,
        )
    if steps < 4 * every:
        raise OstrainError(
            f"{steps} steps with a checkpoint every {every} leave no room for a fault and a recovery",
            next_step=f"--steps {4 * every} or more, or --every {max(1, steps // 4)} or fewer",
            exit_code=ExitCode.USAGE,
        )


def chosen_faults(names: Sequence[str]) -> list[Fault]:
    """The faults that are named, in their order; all of them when none is."""
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        raise OstrainError(
            f"there is no fault {unknown[0]!r}", next_step="one of " + ", ".join(FAULTS), exit_code=ExitCode.USAGE
        )
    return [FAULTS[name] for name in dict.fromkeys(names)] or list(FAULTS.values())
