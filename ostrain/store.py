"""The run store: SQLite in WAL mode. What this submitter has started, and the last it heard of each run.

The truth about a run lives on its nodes (docs/run-directory.md). The store remembers which nodes those are, who is
acting on the run now (so that two clients never start the same attempt), and the last status seen, so that runs
that have ended answer without touching a node.
"""

from __future__ import annotations

import json
import os
import secrets as random_bytes
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ostrain.errors import OstrainError
from ostrain.paths import state_dir
from ostrain.plan import LaunchPlan
from ostrain.states import ExitCode, State

SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE runs (
    run_id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    job_path TEXT NOT NULL,
    created REAL NOT NULL,
    backend TEXT NOT NULL,
    bundle TEXT NOT NULL,
    plan TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    settled INTEGER NOT NULL,
    owner TEXT NOT NULL,
    updated REAL NOT NULL,
    status TEXT NOT NULL,
    supervisor TEXT NOT NULL DEFAULT '',
    wanted TEXT NOT NULL DEFAULT '',
    supervision TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX runs_by_age ON runs (created);
"""
# What brings a store of version N to N + 1.
_MIGRATIONS = {
    1: """
ALTER TABLE runs ADD COLUMN supervisor TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN wanted TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN supervision TEXT NOT NULL DEFAULT '{}';
""",
}


@dataclass(frozen=True)
class Run:
    """A row of the store.

    owner: ``pid:start time`` of the client that is staging or starting the run, empty otherwise.
    settled: every node has ended the attempt; nothing will change any more without a new attempt.
    status: the last derived status (``ostrain.status.RunStatus.as_dict``), ``{}`` before the first.
    supervisor: ``pid:start time`` of the process that supervises the run, or did last; empty where it is let go.
    wanted: ``cancel`` once a person wants the run to end; nobody starts a further attempt then.
    supervision: the supervisor's memory (``ostrain.supervisor.memory``): restarts, faults, fences.
    """

    run_id: str
    name: str
    job_path: str
    created: float
    backend: str
    bundle: str
    plan_json: str
    attempt: int
    state: State
    reason: str
    settled: bool
    owner: str
    updated: float
    status: dict[str, Any] = field(default_factory=dict)
    supervisor: str = ""
    wanted: str = ""
    supervision: dict[str, Any] = field(default_factory=dict)

    @property
    def supervised(self) -> bool:
        """Whether a live process supervises the run now."""
        return owner_alive(self.supervisor)

    @property
    def plan(self) -> LaunchPlan:
        return LaunchPlan.from_json(self.plan_json)


def process_identity(pid: int) -> str:
    """``pid:start time`` of a live process (start time in clock ticks since boot), or ``""``."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return ""
    # The command name may hold spaces and parentheses; fields are counted from the last one.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return "" if fields[0] == b"Z" else f"{pid}:{int(fields[19])}"


def owner_alive(owner: str) -> bool:
    return bool(owner) and process_identity(int(owner.split(":")[0])) == owner


class Store:
    """The runs of this user on this machine. Every method is one transaction; safe from several processes."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or state_dir() / "runs.db"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(self.path, timeout=30.0, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._prepare()
        except (sqlite3.Error, OSError) as error:
            raise OstrainError(
                "the run store cannot be opened",
                where=str(self.path),
                why=str(error),
                next_step="free space or correct the permissions there, or set XDG_STATE_HOME to another place",
            ) from error

    def _prepare(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == SCHEMA_VERSION:
            return
        if version > SCHEMA_VERSION:
            raise OstrainError(
                f"the run store was written by a newer ostrain (schema {version}, this one knows {SCHEMA_VERSION})",
                where=str(self.path),
                next_step="upgrade ostrain, or set XDG_STATE_HOME to another place",
            )
        self._db.execute("PRAGMA journal_mode = WAL")
        with self._transaction():
            # Another process may have been first.
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            steps = [_SCHEMA] if version == 0 else [_MIGRATIONS[number] for number in range(version, SCHEMA_VERSION)]
            for statement in ";".join(steps).split(";"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()

    def add(self, plan: LaunchPlan, job_path: str, bundle: str) -> Run:
        """A new run in state PREPARING, attempt 1, owned by this process. Its id is the name and six letters."""
        now = time.time()
        owner = process_identity(os.getpid())
        with self._transaction():
            run_id = self._free_id(plan.name)
            self._db.execute(
                "INSERT INTO runs (run_id, name, job_path, created, backend, bundle, plan, attempt, state, reason,"
                " settled, owner, updated, status) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                (run_id, plan.name, job_path, now, plan.backend, bundle, plan.to_json(), 1)
                + (State.PREPARING.value, "preparing", 0, owner, now, "{}"),
            )
        return self.get(run_id)

    def _free_id(self, name: str) -> str:
        while True:
            letters = "".join("abcdefghjkmnpqrstuvwxyz23456789"[byte % 31] for byte in random_bytes.token_bytes(6))
            run_id = f"{name}-{letters}"
            if not self._db.execute("SELECT 1 FROM runs WHERE run_id = ?", (run_id,)).fetchone():
                return run_id

    def get(self, run_id: str) -> Run:
        row = self._db.execute("SELECT * FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        if row is None:
            raise OstrainError(f"there is no run {run_id!r}", next_step="ostrain ps -a", exit_code=ExitCode.USAGE)
        return _run(row)

    def all(self) -> list[Run]:
        """Every run, newest first."""
        return [_run(row) for row in self._db.execute("SELECT * FROM runs ORDER BY created DESC, rowid DESC")]

    def find(self, word: str) -> Run:
        """The run that ``word`` names: an id, the start of exactly one id, a job name (its newest run), or ``last``."""
        runs = self.all()
        if word == "last" and runs:
            return runs[0]
        exact = [run for run in runs if run.run_id == word] or [run for run in runs if run.name == word][:1]
        if exact:
            return exact[0]
        matches = [run for run in runs if run.run_id.startswith(word)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            names = ", ".join(run.run_id for run in matches[:5])
            raise OstrainError(
                f"{word!r} is the start of {len(matches)} runs: {names}",
                next_step="write more of the id",
                exit_code=ExitCode.USAGE,
            )
        why = "" if runs else "no run was submitted from this account yet"
        step = "ostrain ps -a" if runs else "ostrain submit JOB"
        raise OstrainError(f"there is no run {word!r}", why=why, next_step=step, exit_code=ExitCode.USAGE)

    def claim(self, run: Run, attempt: int, *, reason: str = "preparing") -> Run:
        """Take a run for a new attempt. Refused when another client was first or is at work on it, or somebody wants
        the run to end and ``reason`` is that of its supervisor (``recovering``)."""
        owner = process_identity(os.getpid())
        with self._transaction():
            current = self.get(run.run_id)
            if reason == "recovering" and current.wanted == "cancel":
                raise OstrainError(f"run {run.run_id} is being cancelled", exit_code=ExitCode.CANCELLED)
            if current.attempt != run.attempt or (owner_alive(current.owner) and current.owner != owner):
                raise OstrainError(
                    f"another client is starting run {run.run_id}",
                    next_step=f"ostrain status {run.run_id}",
                    exit_code=ExitCode.USAGE,
                )
            self._db.execute(
                "UPDATE runs SET attempt=?, state=?, reason=?, settled=0, owner=?, updated=?, status='{}', wanted=''"
                " WHERE run_id=?",
                (attempt, State.PREPARING.value, reason, owner, time.time(), run.run_id),
            )
        return self.get(run.run_id)

    def adopt(self, run: Run, attempt: int) -> Run:
        """Note that a scheduler has begun a further attempt by itself."""
        with self._transaction():
            self._db.execute(
                "UPDATE runs SET attempt=?, settled=0, state=?, reason=?, updated=? WHERE run_id=? AND attempt<?",
                (attempt, State.RUNNING.value, "running", time.time(), run.run_id, attempt),
            )
        return self.get(run.run_id)

    def release(self, run_id: str, state: State, reason: str) -> Run:
        """The client's part of a start is over."""
        with self._transaction():
            self._db.execute(
                "UPDATE runs SET state=?, reason=?, settled=?, owner='', updated=? WHERE run_id=?",
                (state.value, reason, int(state.final), time.time(), run_id),
            )
        return self.get(run_id)

    def record(self, run: Run, state: State, reason: str, settled: bool, status: dict[str, Any]) -> Run:
        """Write a derived status, unless a new attempt has begun or ``run`` has been settled meanwhile."""
        with self._transaction():
            self._db.execute(
                "UPDATE runs SET state=?, reason=?, settled=?, updated=?, status=?"
                " WHERE run_id=? AND attempt=? AND settled=0",
                (state.value, reason, int(settled), time.time(), json.dumps(status), run.run_id, run.attempt),
            )
        return self.get(run.run_id)

    def override(self, run: Run, state: State, reason: str, status: dict[str, Any]) -> Run:
        """Write the outcome of a cancel: it stands above what was derived before."""
        with self._transaction():
            self._db.execute(
                "UPDATE runs SET state=?, reason=?, settled=1, owner='', updated=?, status=?"
                " WHERE run_id=? AND attempt=?",
                (state.value, reason, time.time(), json.dumps(status), run.run_id, run.attempt),
            )
        return self.get(run.run_id)

    def replan(self, run_id: str, plan: LaunchPlan) -> Run:
        """The plan of the attempt that was claimed: its nodes have changed."""
        with self._transaction():
            self._db.execute("UPDATE runs SET plan=?, updated=? WHERE run_id=?", (plan.to_json(), time.time(), run_id))
        return self.get(run_id)

    def want(self, run_id: str, wanted: str) -> None:
        """Say what a person wants of the run: ``cancel``, or nothing any more."""
        with self._transaction():
            self._db.execute("UPDATE runs SET wanted=? WHERE run_id=?", (wanted, run_id))

    def supervise(self, run_id: str) -> Run:
        """Make this process the run's supervisor. Refused while another one lives."""
        me = process_identity(os.getpid())
        with self._transaction():
            current = self.get(run_id)
            if current.supervised and current.supervisor != me:
                pid = current.supervisor.split(":")[0]
                raise OstrainError(
                    f"run {run_id} is supervised already",
                    why=f"by process {pid}",
                    next_step=f"ostrain status {run_id}",
                    exit_code=ExitCode.USAGE,
                )
            self._db.execute("UPDATE runs SET supervisor=? WHERE run_id=?", (me, run_id))
        return self.get(run_id)

    def remember(self, run_id: str, supervision: dict[str, Any]) -> None:
        """Keep what the supervisor knows, so that the next one goes on from there."""
        with self._transaction():
            self._db.execute("UPDATE runs SET supervision=? WHERE run_id=?", (json.dumps(supervision), run_id))

    def let_go(self, run_id: str) -> None:
        """This process supervises the run no longer."""
        with self._transaction():
            me = process_identity(os.getpid())
            self._db.execute("UPDATE runs SET supervisor='' WHERE run_id=? AND supervisor=?", (run_id, me))

    def delete(self, run_id: str) -> None:
        with self._transaction():
            self._db.execute("DELETE FROM runs WHERE run_id = ?", (run_id,))


def _run(row: sqlite3.Row) -> Run:
    return Run(
        run_id=row["run_id"],
        name=row["name"],
        job_path=row["job_path"],
        created=row["created"],
        backend=row["backend"],
        bundle=row["bundle"],
        plan_json=row["plan"],
        attempt=row["attempt"],
        state=State(row["state"]),
        reason=row["reason"],
        settled=bool(row["settled"]),
        owner=row["owner"],
        updated=row["updated"],
        status=json.loads(row["status"]),
        supervisor=row["supervisor"],
        wanted=row["wanted"],
        supervision=json.loads(row["supervision"]),
    )
