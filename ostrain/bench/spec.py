"""What a benchmark file says: one job, and the entries that each change something of it."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field

from models.units import Duration
from ostrain.environment import Line, Part
from ostrain.spec.schema import finished

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,29}[A-Za-z0-9])?\Z")


def _name(value: str) -> str:
    if not _NAME.match(value):
        raise ValueError("letters, digits, . _ - make a name here (at most 31, the first and last no sign)")
    return value


Name = Annotated[Line, AfterValidator(_name)]


class EntrySpec(Part):
    """One entry of the matrix. Every other key is a key of a job and is laid over the benchmark's job."""

    model_config = ConfigDict(extra="allow", frozen=True)

    label: Name = Field(description="the entry's name in tables and pictures; its run is called NAME-LABEL")
    published: Annotated[float, Field(gt=0)] | None = Field(
        None, description="seconds per step that somebody else has published for this, to compare with"
    )


class BenchSpec(Part):
    """A benchmark. The job is ``base`` with ``job`` laid over it; each entry of ``matrix`` is laid over that."""

    name: Name = Field(description="the benchmark's name; its history is kept under it")
    base: Line | None = Field(None, description="the job to start from: a path, or the name of a bundled one")
    job: dict[str, Any] = Field(default_factory=dict, description="keys of a job, for every entry; over those of base")
    steps: Annotated[int, Field(ge=2)] = Field(12, description="steps each run trains, the warm-up among them")
    warmup: Annotated[int, Field(ge=1)] = Field(4, description="first steps of a run, which are not counted")
    repeat: Annotated[int, Field(ge=1, le=1000)] = Field(1, description="runs of each entry, in turns")
    global_batch: Annotated[int, Field(ge=1)] | None = Field(
        None, description="samples of an optimizer step over all workers, equal in every entry"
    )
    baseline: Line | None = Field(None, description="label of the entry that the others are compared with; the first")
    timeout: Duration = Field(7200.0, description="a run that takes longer is ended, and its entry has failed")
    matrix: Annotated[list[EntrySpec], Field(min_length=1)] = Field(description="the entries, each a run of its own")


def bench_schema() -> dict[str, Any]:
    """The JSON schema of a benchmark file."""
    return finished(BenchSpec.model_json_schema(mode="validation"), "ostrain bench")
