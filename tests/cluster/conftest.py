"""A place for local runs, and one testbed for everything that needs real nodes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.backend import NodeError, RunRef
from cluster.local_backend import LocalBackend
from ostrain.plan import NodeAccess
from tests.cluster.toys import SLEEPER, launch, make_plan, node_plan, toy_bundle
from tests.testbed import Testbed


def environ_tags(tag: str) -> list[int]:
    """Pids of this machine with an environment entry ``tag``, zombies left out."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                entries = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
                if (
                    tag.encode() in entries
                    and Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
                ):
                    found.append(int(name))
    return found


@dataclass
class LocalSite:
    """Local runs under a root of their own. Whatever a test leaves is ended afterwards."""

    folder: Path
    backend: LocalBackend = field(default_factory=LocalBackend)
    runs: list[RunRef] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def run(self, worker: str = SLEEPER, ranks: Sequence[int] = (0,), name: str = "run-1", **options: Any) -> RunRef:
        """A run that is not started yet."""
        changes = options.pop("plan", {})
        access = NodeAccess("localhost", root=str(self.root), python=sys.executable)
        plan = make_plan("local", [node_plan("node-0", access, worker, ranks, **options)], **changes)
        run = RunRef(name, plan)
        self.runs.append(run)
        return run

    def start(self, *arguments: Any, **options: Any) -> RunRef:
        run = self.run(*arguments, **options)
        launch(self.backend, run, self.bundle())
        return run

    def bundle(self) -> Path:
        return toy_bundle(self.folder)

    def run_dir(self, run: RunRef) -> Path:
        return self.root / "runs" / run.run_id / "node-0"

    def close(self) -> None:
        for run in self.runs:
            for answer in self.backend.stop(run, grace=0.0).values():
                assert not isinstance(answer, NodeError) or answer.kind == "no_run", answer
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LocalSite]:
    place = LocalSite(tmp_path)
    yield place
    place.close()


@pytest.fixture(scope="session")
def shared_bed() -> Iterator[Testbed]:
    with Testbed(3) as bed:
        yield bed


@pytest.fixture
def bed(shared_bed: Testbed, monkeypatch: pytest.MonkeyPatch) -> Testbed:
    """The session's testbed, with this process as its client."""
    for name, value in shared_bed.environment().items():
        monkeypatch.setenv(name, value)
    return shared_bed
