"""How many bytes a rank sends: counted call by call. No import of MindSpore.

Bytes are what the usual algorithms move, whatever a device's library really does (on CPU several collectives are built
from AllReduce): rings for all_reduce, all_gather and reduce_scatter, pairwise exchange for all_to_all. With p ranks and
n bytes in a rank's tensor, each rank sends

==============  =====================================
all_reduce      2 (p - 1) ceil(n / p)
all_gather      (p - 1) n
reduce_scatter  (p - 1) ceil(n / p)
all_to_all      (p - 1) ceil(n / p)
==============  =====================================

in whole elements.
"""

from __future__ import annotations

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")


def sent(kind: str, elements: int, item_size: int, ranks: int) -> int:
    """Bytes one rank sends in a collective over ``ranks`` ranks whose input has ``elements`` elements on each."""
    part = -(-elements // ranks)
    share = {"all_reduce": 2 * part, "all_gather": elements, "reduce_scatter": part, "all_to_all": part}[kind]
    return (ranks - 1) * share * item_size


class Traffic:
    """Calls and bytes by kind of collective since the last :meth:`take`; where ``timed``, the seconds spent in them.

    A rank that comes late to a collective spends little time in it, those that wait for it spend much: the seconds
    tell who holds the others up.
    """

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self.timed = False
        self._waited = 0.0

    def begin(self, timed: bool) -> None:
        """A step begins whose collectives are timed, or not."""
        self.timed, self._waited = timed, 0.0

    def wait(self, seconds: float) -> None:
        """Adds the seconds of one collective."""
        self._waited += seconds

    @property
    def waited(self) -> float | None:
        """Seconds in collectives since the step began, None where they are not timed."""
        return self._waited if self.timed else None

    def add(self, kind: str, elements: int, item_size: int, ranks: int) -> None:
        entry = self._counts.setdefault(kind, [0, 0])
        entry[0] += 1
        entry[1] += sent(kind, elements, item_size, ranks)

    def take(self) -> dict[str, tuple[int, int]]:
        """{kind: (calls, bytes)}, and starts anew."""
        counts, self._counts = self._counts, {}
        return {kind: (calls, size) for kind, (calls, size) in sorted(counts.items())}
