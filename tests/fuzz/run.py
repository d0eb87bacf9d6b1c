"""Runs a target. An example that takes longer than its bound counts as a hang."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.targets import Target

BOUND = 10.0  # seconds an example may take; most take milliseconds


def fuzz(target: Target, examples: int, *, repeatable: bool) -> None:
    """AssertionError or what the code raised, with the smallest input that makes it happen."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"an example takes more than {BOUND} s")

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=repeatable,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(target.strategy)
    def one(value: Any) -> None:
        timed = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGALRM, late) if timed else None
        if timed:
            signal.setitimer(signal.ITIMER_REAL, BOUND)
        try:
            target.use(value)
        finally:
            if timed:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)

    one()
