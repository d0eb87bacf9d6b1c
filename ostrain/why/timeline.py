"""Everything that happened to an attempt, on this machine's clock, in order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ostrain.logs import describe
from ostrain.states import REASONS
from ostrain.why.blocks import read_blocks
from ostrain.why.codes import Code, find_code, signals
from ostrain.why.evidence import Evidence
from ostrain.why.stamps import Level

# Events of agents and payload that are worth a line though nothing went wrong.
_MILESTONES = {"started", "train_started", "resumed", "compiled", "checkpoint_saved", "train_finished", "ended"}


@dataclass(frozen=True)
class Moment:
    """One thing that happened.

    time: on this machine's clock; None where nothing tells it. level: INFO for what is only context. kind: ``log``,
    ``plog``, ``kernel``, ``fault`` (a payload's own report), ``end`` (a process's), ``event``, ``supervisor``.
    where: file of the run directory, or the driver's log. fatal: it ended its process, as far as one can tell.
    by_agent: the agent ended that process on purpose, because of something earlier.
    """

    time: float | None
    node: str
    rank: int | None
    kind: str
    level: Level
    text: str
    where: str = ""
    code: Code | None = None
    fatal: bool = False
    by_agent: bool = False
    guessed: bool = False

    @property
    def who(self) -> str:
        if not self.node:
            return "supervisor"
        return self.node if self.rank is None else f"{self.node}/{self.rank}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "time": self.time, "node": self.node, "rank": self.rank, "kind": self.kind, "level": self.level.name,
            "text": self.text, "where": self.where, "code": self.code.code if self.code else None,
            "fatal": self.fatal, "guessed": self.guessed,
        }  # fmt: skip


def build(evidence: Evidence) -> list[Moment]:
    """Every moment in order; undated ones come last."""
    moments = list(_supervision(evidence))
    for node in evidence.run.plan.nodes:
        moments += _events(evidence, node.name)
        moments += _ends(evidence, node.name)
        moments += _faults(evidence, node.name)
        moments += _logs(evidence, node.name)
        moments += _driver(evidence, node.name)
    return sorted(moments, key=lambda one: (one.time is None, one.time or 0.0, -one.level))


def _ours(evidence: Evidence, node: str, moment: Any) -> float | None:
    """A node's time on this machine's clock; None for what is no time of this or the next thousand years."""
    known = isinstance(moment, int | float) and 0 < moment < 1e11
    return float(moment) - evidence.clock(node).offset if known else None


def _number(value: Any) -> int | None:
    """A whole number; None for whatever else a damaged file holds in its place."""
    return value if isinstance(value, int) else None


def _killed_by_agent(evidence: Evidence, node: str) -> set[int]:
    """Pids that the agent ended, by its events."""
    found: set[int] = set()
    for row in evidence.lines(node, "events.jsonl"):
        killed = row.get("killed")
        mine = row.get("event") == "killed" and row.get("attempt") == evidence.attempt
        if mine and isinstance(killed, list):
            found |= {_number(one.get("pid")) or 0 for one in killed if isinstance(one, dict)}
    return found


def _ends(evidence: Evidence, node: str) -> Iterator[Moment]:
    """Ends of workers and of the scheduler that were no success."""
    killed = _killed_by_agent(evidence, node)
    vanished = {
        _number(row.get("rank")): row.get("time")
        for row in evidence.lines(node, "events.jsonl")
        if row.get("event") == "worker_vanished" and row.get("attempt") == evidence.attempt
    }
    for record in evidence.records(node, "workers"):
        rank, ended = _number(record.get("rank")), record.get("ended")
        signal, code = str(record.get("signal") or ""), _number(record.get("exit_code"))
        if ended is None and rank in vanished:
            signal, ended = "SIGKILL", vanished[rank]
        if ended is None or (not signal and not code):
            continue
        what = "worker" if record.get("role") != "scheduler" else "scheduler"
        how = f"ended by {signal}" if signal else f"ended with exit code {code}"
        by_agent = _number(record.get("pid")) in killed
        yield Moment(
            _ours(evidence, node, ended), node, rank, "end", Level.ERROR,
            f"{what} {how}" + (", by the node agent" if by_agent else ""),
            f"workers/attempt-{evidence.attempt}", signals().get(signal), fatal=True, by_agent=by_agent,
        )  # fmt: skip


def _faults(evidence: Evidence, node: str) -> Iterator[Moment]:
    """What failing payloads reported of themselves."""
    for record in evidence.records(node, "faults"):
        text = ": ".join(str(record[key]) for key in ("what", "why") if record.get(key))
        code = find_code(str(record.get("what"))) or find_code(str(record.get("traceback") or "")[-4000:])
        yield Moment(
            _ours(evidence, node, record.get("time")), node, _number(record["rank"]), "fault", Level.ERROR, text,
            f"faults/attempt-{evidence.attempt}", code, fatal=True,
        )  # fmt: skip


def _logs(evidence: Evidence, node: str) -> Iterator[Moment]:
    prefix, clock = f"logs/attempt-{evidence.attempt}/", evidence.clock(node)
    for path, log in sorted(evidence.files.get(node, {}).items()):
        if not path.startswith(prefix):
            continue
        _, source, rank = describe(path)
        if source == "agent":  # its events say the same, and more
            continue
        for block in read_blocks(log.text, clock.utc_offset):
            yield Moment(
                _ours(evidence, node, block.time), node, rank, "log", block.level, block.text, path, block.code,
                fatal=not block.survived and block.level is Level.ERROR and source == "worker", guessed=block.guessed,
            )  # fmt: skip


def _driver(evidence: Evidence, node: str) -> Iterator[Moment]:
    for file in evidence.plogs.get(node, []):
        for block in read_blocks(str(file.get("text") or ""), evidence.clock(node).utc_offset):
            yield Moment(
                _ours(evidence, node, block.time), node, file.get("rank"), "plog", block.level, block.text,
                str(file.get("path") or ""), block.code, fatal=block.level is Level.ERROR,
            )  # fmt: skip
    records = evidence.records(node, "workers")
    ranks = {_number(record.get("pid")): _number(record.get("rank")) for record in records}
    for line in evidence.kernel.get(node, []):
        text = str(line.get("text") or "")
        code = find_code(text)
        pid = re.search(r"(?:[Kk]illed process |\[)(\d+)", text)
        rank = ranks.get(int(pid[1])) if pid else None
        # Of other programs on the node only what is known matters.
        if code is not None:
            yield Moment(
                _ours(evidence, node, line.get("time")), node, rank, "kernel", Level.ERROR, text, "kernel", code,
                fatal=rank is not None or code.kind == "hardware",
            )  # fmt: skip


def _events(evidence: Evidence, node: str) -> Iterator[Moment]:
    """Milestones; of checkpoints only the newest."""
    rows = [row for row in evidence.lines(node, "events.jsonl") if row.get("attempt") == evidence.attempt]
    saved = [row for row in rows if row.get("event") == "checkpoint_saved"]
    for row in rows:
        event = str(row.get("event"))
        if event not in _MILESTONES or (event == "checkpoint_saved" and row is not saved[-1]):
            continue
        text = {"started": "the agent started its launcher", "ended": f"the node ended: {row.get('reason')}"}.get(event)
        step = f" at step {row['step']}" if isinstance(row.get("step"), int) else ""
        yield Moment(
            _ours(evidence, node, row.get("time")), node, _number(row.get("rank")), "event", Level.INFO,
            text or event.replace("_", " ") + step, "events.jsonl",
        )  # fmt: skip


def _reason_code(reason: str) -> Code | None:
    """A word of docs/runs.md as what explains a supervisor's entry."""
    known = REASONS.get(reason)
    return None if known is None else Code(reason, "killed", known.meaning, "", known.next_step)


def _supervision(evidence: Evidence) -> Iterator[Moment]:
    """The supervisor's entries; its clock is this machine's."""
    for entry in evidence.journal:
        if entry.get("attempt") != evidence.attempt:
            continue
        grave = entry.get("event") in ("detected", "stuck", "gave_up", "unreachable")
        detail = str(entry.get("detail") or "")
        text = str(entry.get("event")).replace("_", " ")
        reason = str(entry.get("reason") or "")
        yield Moment(
            entry.get("time"), str(entry.get("node") or ""), entry.get("rank"), "supervisor",
            Level.ERROR if grave else Level.INFO, ": ".join(part for part in (text, reason, detail) if part),
            "supervisor.jsonl", _reason_code(reason), fatal=entry.get("event") in ("detected", "stuck"),
        )  # fmt: skip
