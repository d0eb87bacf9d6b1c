"""Calls to a cloud service: what their failures mean, and which of them may be tried again.

A request that only reads, or that leaves the same state when it arrives twice, is repeated after 429, 5xx, time-outs
and broken answers, with growing waits and no earlier than ``Retry-After`` says. A request that makes something is
sent once; where its answer is unclear the caller looks whether it arrived.
"""

from __future__ import annotations

import contextlib
import email.utils
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from ostrain.errors import OstrainError

T = TypeVar("T")
Kind = Literal["throttled", "server", "unclear", "unreachable", "denied", "missing", "rejected"]
# The service has not acted on the request, or that it did does not matter.
_PASSING = frozenset({"throttled", "server", "unclear", "unreachable"})
UNREACHABLE, USAGE = 4, 2


class CloudError(OstrainError):
    """A failed call. ``kind``: throttled (429), server (5xx), unclear (no whole answer: it may have been carried out),
    unreachable (never sent), denied (401, 403), missing (404), rejected (every other refusal)."""

    def __init__(
        self,
        kind: Kind,
        service: str,
        doing: str,
        why: str,
        *,
        status: int = 0,
        code: str = "",
        request_id: str = "",
        retry_after: float = 0.0,
    ) -> None:
        told = " ".join(part for part in (str(status or ""), code) if part)
        parts = [f"{told}: {why}" if told else why, f"request {request_id}" if request_id else ""]
        super().__init__(
            f"{service}: {doing} failed",
            why="; ".join(part for part in parts if part),
            next_step=_NEXT[kind],
            exit_code=USAGE if kind == "rejected" else UNREACHABLE,
        )
        self.kind = kind
        self.status = status
        self.code = code
        self.retry_after = retry_after
        self.final = False  # set where repeating could do something twice

    @property
    def passing(self) -> bool:
        """Whether the same request may well succeed later."""
        return self.kind in _PASSING and not self.final


_NEXT: dict[Kind, str] = {
    "throttled": "repeat the command in a minute; too many requests were sent",
    "server": "repeat the command in a few minutes; the service has a fault",
    "unclear": "repeat the command",
    "unreachable": "look at the network, the proxy settings and the inventory's region and endpoints",
    "denied": "look at the keys (and whether temporary ones have expired), the project and the rights of the account",
    "missing": "ostrain status RUN",
    "rejected": "correct what it names in the inventory or the job",
}


def kind_of(status: int) -> Kind:
    """What an HTTP status says of a failed request."""
    if status == 429:
        return "throttled"
    if status >= 500:
        return "server"
    if status in (401, 403):
        return "denied"
    return "missing" if status == 404 else "rejected"


def seconds_of(retry_after: str | None, now: float) -> float:
    """Seconds that a ``Retry-After`` header asks for: a number or a date. 0 where it says nothing readable."""
    if not retry_after:
        return 0.0
    with contextlib.suppress(ValueError):  # then it is a date
        return max(0.0, float(retry_after))
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - now)
    except ValueError:
        return 0.0


@dataclass
class Patience:
    """How long and how often a failing call is repeated. Times in seconds."""

    tries: int = 6
    first: float = 0.5
    longest: float = 20.0
    total: float = 60.0
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    def repeated(self, call: Callable[[], T]) -> T:
        """The answer of a call that may be sent again. Raises its last CloudError."""
        started, wait = self.clock(), self.first
        for attempt in range(1, self.tries + 1):
            try:
                return call()
            except CloudError as error:
                pause = max(error.retry_after, wait * random.uniform(0.8, 1.2))
                late = self.clock() - started + pause > self.total
                if not error.passing or attempt == self.tries or late:
                    raise
                self.sleep(pause)
                wait = min(2 * wait, self.longest)
        raise AssertionError("a loop without tries")
