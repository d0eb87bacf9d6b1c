"""Verdicts for people: a line each; what all nodes have in common once."""

from __future__ import annotations

from collections.abc import Sequence

from ostrain.errors import OstrainError
from ostrain.preflight.verdict import Level, Verdict

_MOST = 3  # different words on one line


def lines(verdicts: Sequence[Verdict], *, every: bool = False) -> list[str]:
    """What people read: a check that went well everywhere is one line, everything else a line a node.

    every: a line a node always.
    """
    found: list[str] = []
    for check in dict.fromkeys(verdict.check for verdict in verdicts):
        own = [verdict for verdict in verdicts if verdict.check == check]
        good = [verdict for verdict in own if verdict.level is Level.OK]
        if good and not every and len(good) > 1:
            words = list(dict.fromkeys(verdict.what for verdict in good))
            text = "; ".join(words[:_MOST]) + (f"; … ({len(words)} in all)" if len(words) > _MOST else "")
            found.append(_line("ok", check, f"{len(good)} nodes", text))
        else:
            found += [_line("ok", check, verdict.node, verdict.what) for verdict in good]
        for verdict in own:
            if verdict.level is not Level.OK:
                found += told(verdict)
    return found


def told(verdict: Verdict) -> list[str]:
    """One verdict in full."""
    found = [_line(verdict.level.value, verdict.check, verdict.node, verdict.what)]
    for label, text in (("why", verdict.why), ("next", verdict.next_step)):
        if text:
            found.append(f"        {label}: {text}")
    return found


def _line(level: str, check: str, node: str, what: str) -> str:
    return f"{level:<5} {check:<12} {node:<10} {what}".rstrip()


def summary(verdicts: Sequence[Verdict], nodes: int) -> str:
    checks = len({verdict.check for verdict in verdicts if verdict.level is not Level.SKIP})
    counts = [(sum(verdict.level is level for verdict in verdicts), word)
              for level, word in ((Level.FAIL, "failed"), (Level.WARN, "with a warning"))]  # fmt: skip
    bad = ", ".join(f"{count} {word}" for count, word in counts if count)
    return f"{checks} checks on {nodes} node{'s' if nodes != 1 else ''}: {bad or 'all passed'}"


class PreflightFailed(OstrainError):
    """Nodes are not fit for the job; prints every failed line."""

    def __init__(self, verdicts: Sequence[Verdict], nodes: int, exit_code: int, job: str) -> None:
        super().__init__(
            summary(verdicts, nodes), exit_code=exit_code,
            next_step=f"correct it and submit again; `ostrain check {job}` shows every line",
        )  # fmt: skip
        self.verdicts = [verdict for verdict in verdicts if verdict.level is Level.FAIL]

    def __str__(self) -> str:
        return "\n".join(line for verdict in self.verdicts for line in told(verdict)) + "\n\n" + super().__str__()
