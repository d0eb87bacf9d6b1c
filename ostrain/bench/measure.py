"""What the steps of one run took, out of the metrics that every rank wrote."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ostrain.errors import OstrainError

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast")
Record = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """The counted steps of one run: those after the warm-up on which no shape was new (a new one compiles).

    seconds, data_wait: of the slowest rank, a value a step. tokens, samples: of all ranks, a value a step.
    shapes: a word a step. memory: peak bytes of the rank that needs most; memory_least of the one that needs least.
    compile_seconds: as the payload told (``compile_told``), else first step minus the median of its like.
    comm: collective -> [calls, bytes] of the mean rank and step; comm_most: bytes of the rank that moves most, a
    step; comm_total: bytes of all ranks, a step. None where the payload did not say.
    """

    seconds: tuple[float, ...]
    data_wait: tuple[float, ...]
    tokens: tuple[int, ...]
    samples: tuple[int, ...]
    shapes: tuple[str, ...]
    memory: int
    memory_least: int
    compile_seconds: float | None
    compile_told: bool
    comm: dict[str, list[float]] | None = None
    comm_most: float | None = None
    comm_total: float | None = None
    ranks: int = field(default=1)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measured:
        lists = ("seconds", "data_wait", "tokens", "samples", "shapes")
        values: dict[str, Any] = {key: tuple(value) if key in lists else value for key, value in data.items()}
        return cls(**values)


def parse_lines(data: bytes) -> list[Record]:
    """Records of a JSON-lines file; a last line that was never finished is left out."""
    records = []
    for line in data.split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue  # an empty or torn line; steps that lack a rank are not counted below
        if isinstance(record, dict):
            records.append(record)
    return records


def measure(ranks: Mapping[int, Sequence[Record]], events: Sequence[Record], warmup: int) -> Measured:
    """Put the ranks' records together. Raises OstrainError where no step is left to count."""
    by_rank = {rank: {int(record["step"]): record for record in records} for rank, records in ranks.items()}
    common = sorted(set.intersection(*(set(steps) for steps in by_rank.values()))) if by_rank else []
    first = min(by_rank, default=0)
    counted = _counted(common, by_rank.get(first, {}), warmup)
    if not counted:
        missing = [f"rank {rank}" for rank, steps in sorted(by_rank.items()) if not steps]
        raise OstrainError(
            "no step of the run can be counted",
            why=f"no metrics of {', '.join(missing[:4])}" if missing else
            f"{len(common)} steps, of which {warmup} are warm-up and the rest is the first of its shape",
            next_step="raise `steps` of the benchmark",
        )  # fmt: skip
    table = {step: [steps[step] for steps in by_rank.values()] for step in counted}
    lead = [by_rank[first][step] for step in counted]
    seconds = tuple(max(float(one["seconds"]) for one in table[step]) for step in counted)
    memory = [max(int(record.get("memory") or 0) for record in steps.values()) for steps in by_rank.values()]
    compile_seconds, told = _compile(events, common, by_rank[first], dict(zip(counted, seconds, strict=True)))
    comm, most, total = _comm([[steps[step] for step in counted] for steps in by_rank.values()])
    return Measured(
        seconds=seconds,
        data_wait=tuple(max(float(one.get("data_wait") or 0.0) for one in table[step]) for step in counted),
        tokens=tuple(round(float(record["tokens_per_s"]) * float(record["seconds"])) for record in lead),
        samples=tuple(int(record["samples"]) for record in lead),
        shapes=tuple(str(record.get("shape", "")) for record in lead),
        memory=max(memory),
        memory_least=min(memory),
        compile_seconds=compile_seconds,
        compile_told=told,
        comm=comm,
        comm_most=most,
        comm_total=total,
        ranks=len(by_rank),
    )


def _counted(common: Sequence[int], records: Mapping[int, Record], warmup: int) -> list[int]:
    """Steps after the warm-up whose shape an earlier step had."""
    seen: set[str] = set()
    counted = []
    for step in common:
        shape = str(records[step].get("shape", ""))
        if step > warmup and shape in seen:
            counted.append(step)
        seen.add(shape)
    return counted


def _compile(
    events: Sequence[Record], common: Sequence[int], records: Mapping[int, Record], counted: Mapping[int, float]
) -> tuple[float | None, bool]:
    """Seconds of compilation over all shapes, and whether the payload told them."""
    told = [float(event["seconds"]) for event in events if event.get("event") == "compiled" and "seconds" in event]
    if told:
        return sum(told), True
    total, seen = 0.0, set()
    for step in common:
        shape = str(records[step].get("shape", ""))
        if shape in seen:
            continue
        seen.add(shape)
        like = [value for at, value in counted.items() if str(records[at].get("shape", "")) == shape]
        if like:
            total += max(0.0, float(records[step]["seconds"]) - statistics.median(like))
    return total, False


def _comm(ranks: Sequence[Sequence[Record]]) -> tuple[dict[str, list[float]] | None, float | None, float | None]:
    """Per step: calls and bytes of the mean rank by collective, bytes of the busiest rank, bytes of all."""
    if any(not isinstance(record.get("comm"), dict) for records in ranks for record in records):
        return None, None, None
    sums: dict[str, list[float]] = {}
    by_rank = []
    for records in ranks:
        moved = 0.0
        for record in records:
            for name, (calls, size) in record["comm"].items():
                entry = sums.setdefault(name, [0.0, 0.0])
                entry[0] += calls
                entry[1] += size
                moved += size
        by_rank.append(moved / len(records))
    steps = sum(len(records) for records in ranks)
    mean = {name: [calls / steps, size / steps] for name, (calls, size) in sorted(sums.items(), key=_place)}
    return mean, max(by_rank), sum(by_rank)


def _place(item: tuple[str, Any]) -> tuple[int, str]:
    name = item[0]
    return (COLLECTIVES.index(name) if name in COLLECTIVES else len(COLLECTIVES), name)


def quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    """25th percentile, median, 75th percentile (linear between neighbours)."""
    ordered = sorted(values)
    if len(ordered) == 1:
        return ordered[0], ordered[0], ordered[0]
    low, middle, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return low, middle, high
