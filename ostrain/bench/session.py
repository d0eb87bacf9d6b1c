"""A benchmark from its first run to its report: order of the runs, what is reused, what is written when."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.backend import Backend
from ostrain import __version__
from ostrain.bench.load import Bench, Case
from ostrain.bench.run import Job, end, run_once
from ostrain.bench.store import History, Results, RunResult
from ostrain.bench.summary import Row, against_baseline, change_since, figures
from ostrain.bench.text import entry_line, outcome_line
from ostrain.errors import OstrainError
from ostrain.lifecycle import Say
from ostrain.plan import LaunchPlan
from ostrain.progress import Progress
from ostrain.store import Store

Opened = Callable[[LaunchPlan], AbstractContextManager[Backend]]


@dataclass
class Session:
    """One call of ``ostrain bench``. ``opened`` gives the backend of a plan, ``shown`` the progress of a run."""

    bench: Bench
    store: Store
    folder: Path
    bundle: Path
    code: str
    opened: Opened
    secrets: Callable[[LaunchPlan], dict[str, str]]
    shown: Callable[[LaunchPlan], Progress]
    say: Say
    keep: bool = False
    done: list[RunResult] = field(default_factory=list)
    going: dict[str, str] | None = None
    started: float = field(default_factory=time.time)
    complete: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.results = Results(self.folder)
        self.history = History(self.bench.spec.name)

    def pick_up(self, *, fresh: bool) -> None:
        """Take over what an unfinished benchmark of the same code and configuration has measured, and end the run that
        it left going. A complete one is measured again."""
        before = self.results.read()
        if before is None:
            return
        self._end_leftover(before.get("going"))
        if fresh or before.get("complete"):
            return
        configs = {case.label: case.config for case in self.bench.cases}
        for run in map(RunResult.from_dict, before["runs"]):
            same = configs.get(run.label) == run.config and run.code == self.code
            if same and run.state == "done" and run.turn <= self.bench.spec.repeat:
                self.done.append(run)
        if self.done:
            self.started = before["started"]
            count = f"{len(self.done)} run" + ("s" if len(self.done) > 1 else "")
            self.say(f"reusing {count} of an unfinished benchmark (--fresh measures everything again)")

    def _end_leftover(self, going: dict[str, str] | None) -> None:
        run = next((run for run in self.store.all() if going and run.run_id == going["run_id"]), None)
        if run is None:
            return
        self.say(f"ending {run.run_id}, which an interrupted benchmark left")
        with self.opened(run.plan) as backend:
            end(self.store, backend, run, self.say)

    def run(self) -> None:
        """Every run that is missing, turn by turn. Results are on disk after each; KeyboardInterrupt passes through."""
        cases, repeat = self.bench.cases, self.bench.spec.repeat
        todo = [(turn, case) for turn in range(1, repeat + 1) for case in cases if not self._known(case, turn)]
        self._write()
        for number, (turn, case) in enumerate(todo, 1):
            self.say(f"[{number}/{len(todo)}] {entry_line(case)}" + (f", turn {turn}" if repeat > 1 else ""))
            self.done.append(self._once(case, turn))
            self.going = None
            self._write()
            self.say(f"  {outcome_line(self.done[-1])}")
        self.complete = all(run.measured is not None for run in self.done)
        self._write()
        self._remember()

    def _known(self, case: Case, turn: int) -> bool:
        return any((run.label, run.turn) == (case.label, turn) for run in self.done)

    def _once(self, case: Case, turn: int) -> RunResult:
        spec, begun = self.bench.spec, time.time()
        run_id, reason, measured, kept = "", "", None, False

        def started(name: str) -> None:
            self.going = {"label": case.label, "run_id": name}
            self._write()

        try:
            job = Job(
                plan=case.plan,
                job_path=str(self.bench.path),
                bundle=self.bundle,
                secrets=self.secrets(case.plan),
                warmup=spec.warmup,
                timeout=spec.timeout,
                keep=self.keep,
            )
            with self.opened(case.plan) as backend:
                outcome = run_once(self.store, backend, job, self.shown(case.plan), self.say, started)
            run_id, reason, measured, kept = outcome.run_id, outcome.reason, outcome.measured, outcome.kept
        except OstrainError as error:
            # One entry's nodes may refuse while another's do not: the others are still worth measuring.
            self.say(str(error))
            reason = error.what
        if kept and measured is None:
            self.say(f"  its run is kept: ostrain logs {run_id}")
        state = "done" if measured is not None else "failed"
        return RunResult(case.label, turn, case.config, self.code, state, reason, run_id if kept else "", begun,
                         time.time(), measured)  # fmt: skip

    def rows(self) -> list[Row]:
        """One row an entry, in the file's order; compared with the baseline and the history."""
        raw = {case.label: self._raw(case) for case in self.bench.cases}
        baseline = raw.get(self.bench.baseline)
        rows = []
        for case in self.bench.cases:
            row = {**raw[case.label], **against_baseline(raw[case.label], baseline)}
            before = self.history.last(case.label, case.config, self.started)
            if before is not None:
                row["change"] = change_since(row, before["row"], before["time"], before["code"])
            rows.append(Row(**row))
        return rows

    def _raw(self, case: Case) -> dict[str, Any]:
        runs = [run for run in self.done if run.label == case.label]
        failed = [run.reason for run in runs if run.measured is None]
        measured = [run.measured for run in runs if run.measured is not None]
        state = "waiting" if not runs else "failed" if failed else "done"
        row: dict[str, Any] = {
            "label": case.label,
            "state": state,
            "reason": failed[0] if failed else "not run" if not runs else "done",
            "layout": case.plan.layout,
            "workers": case.plan.world,
            "nodes": len(case.plan.nodes),
            "config": case.config,
            "published": case.published,
        }
        return {**row, **figures(measured)} if measured else row

    def describe(self) -> dict[str, Any]:
        """What was measured, where and with what; the head of results.json and of the report."""
        spec, plan = self.bench.spec, self.bench.cases[0].plan
        return {
            "bench": spec.name,
            "file": str(self.bench.path),
            "started": self.started,
            "ended": time.time(),
            "ostrain": __version__,
            "code": self.code,
            "steps": spec.steps,
            "warmup": spec.warmup,
            "repeat": spec.repeat,
            "global_batch": spec.global_batch,
            "baseline": self.bench.baseline,
            "backend": plan.backend,
            "device": plan.device,
        }

    def to_dict(self) -> dict[str, Any]:
        """results.json. complete: every run was made and has numbers; else the next call makes the missing ones."""
        return {
            **self.describe(),
            "complete": self.complete,
            "going": self.going,
            "rows": [row.to_dict() for row in self.rows()],
            "runs": [run.to_dict() for run in self.done],
        }

    def _write(self) -> None:
        self.results.write(self.to_dict())

    def _remember(self) -> None:
        """Finished entries into the history. Their comparison with the last time was made before."""
        rows = [row for row in self.rows() if row.state == "done"]
        now = time.time()
        self.history.append(
            [
                {"time": now, "label": row.label, "config": row.config, "code": self.code, "ostrain": __version__,
                 "row": dataclasses.asdict(dataclasses.replace(row, change=None))}
                for row in rows
            ]
        )  # fmt: skip
