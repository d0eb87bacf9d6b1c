"""All cases of a drill, one after the other: first the undisturbed run, then every fault with every seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ostrain.drill.case import Ground, rehearse, undisturbed
from ostrain.drill.faults import Fault
from ostrain.drill.verdict import LossPair, Verdict

Told = Callable[[Verdict], None]


@dataclass
class Rehearsal:
    """``done`` holds the verdicts so far; after an interrupt those of the cases that were over."""

    ground: Ground
    faults: Sequence[Fault]
    seeds: Sequence[int]
    tell: Told
    base: dict[int, LossPair] | None = None
    done: list[Verdict] = field(default_factory=list)

    @property
    def cases(self) -> list[tuple[Fault, int]]:
        return [(fault, seed) for fault in self.faults for seed in self.seeds]

    def run(self) -> None:
        """Everything. KeyboardInterrupt passes through once the case at hand is mended, ended and deleted."""
        possible = [fault for fault in self.faults if not self.ground.rehearsed.impossible(fault)]
        if possible and self.base is None:
            self.ground.say("an undisturbed run, to compare the others with")
            self.base = undisturbed(self.ground)
        for number, (fault, seed) in enumerate(self.cases, 1):
            self.ground.say(f"[{number}/{len(self.cases)}] {fault.name}, seed {seed}: {fault.title}")
            verdict = self._one(fault, seed)
            self.done.append(verdict)
            self.tell(verdict)

    def _one(self, fault: Fault, seed: int) -> Verdict:
        why = self.ground.rehearsed.impossible(fault)
        earlier = next((one for one in self.done if one.fault == fault.name and one.cannot), None)
        if why or earlier is not None:
            # What cannot be made once cannot be made with another seed either: no further run is spent on it.
            return Verdict(fault.name, seed=seed, cannot=why or (earlier.cannot if earlier else ""))
        assert self.base is not None
        return rehearse(self.ground, fault, seed, self.base)
