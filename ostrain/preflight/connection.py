"""Reaching the nodes: connection, host key, user, clock."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from cluster.backend import NodeError
from ostrain.preflight.situation import Situation
from ostrain.preflight.verdict import Level, Verdict, fail, ok, warn

# Which line an error of the connection belongs to; the others to `reach`.
_LINES = {
    "host_key_unknown": "host_key",
    "host_key_changed": "host_key",
    "auth_failed": "user",
    "python_missing": "python",
    "disk_full": "space",
    "permission": "space",
}
SLIGHT_SKEW = 1.0  # seconds that are worth a warning


def line_of(error: NodeError) -> str:
    """The line that an error of asking a node makes fail."""
    return _LINES.get(error.kind, "reach")


def as_verdict(node: str, error: NodeError) -> Verdict:
    code = int(error.exit_code)
    return Verdict(node, Level.FAIL, error.what, error.why, error.next_step, code, line_of(error))


def reach(situation: Situation) -> Iterator[Verdict]:
    for name, seen in situation.answering():
        yield ok(name, f"answers in {seen.seconds:.2f} s")


def host_key(situation: Situation) -> Iterator[Verdict]:
    for name, seen in situation.answering():
        if seen.host_key is None:
            yield ok(name, "this machine")
            continue
        key = seen.host_key
        yield Verdict(name, Level.OK, f"{key['type']}, {key['source']}", key["fingerprint"])


def user(situation: Situation) -> Iterator[Verdict]:
    told = situation.told("identity")
    ids = {facts["uid"] for facts in told.values()}
    for name, facts in told.items():
        what = f"{facts['user'] or 'nameless'} (uid {facts['uid']})"
        if len(ids) > 1:
            yield warn(
                name, what, "the nodes' user ids differ: on a shared file system one cannot write what another made",
                "give the user one id everywhere",
            )  # fmt: skip
        else:
            yield ok(name, what)


def clock(situation: Situation) -> Iterator[Verdict]:
    """Distance of each clock from the middle one, this machine's among them, beyond what the measure may be off by."""
    offsets = {name: seen.offset for name, seen in situation.answering()}
    middle = median([0.0, *offsets.values()])
    limit = situation.wishes.config.clock_skew
    for name, seen in situation.answering():
        away = seen.offset - middle
        sure = max(0.0, abs(away) - seen.error)
        what = f"{abs(away):.2f} s {'ahead' if away >= 0 else 'behind'} (± {seen.error:.2f})"
        why = f"its clock is {what} of the others'; logs, faults and checkpoints are dated by it"
        step = "start time synchronisation there (chronyc makestep, timedatectl set-ntp true)"
        if sure > limit:
            yield fail(name, what, why, step + ", or raise check.clock_skew")
        elif sure > SLIGHT_SKEW:
            yield warn(name, what, why, step)
        else:
            yield ok(name, what)
