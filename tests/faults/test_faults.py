"""A short selection of the fault matrix (``python -m tests.faults`` runs all of it): two nodes and a spare."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ostrain.drill.faults import FAULTS
from ostrain.drill.text import line
from tests.faults.matrix import DISK, Matrix, as_client
from tests.testbed import Testbed

pytestmark = [pytest.mark.train, pytest.mark.nodes]
STEPS = 16


@pytest.fixture(scope="module")
def matrix() -> Iterator[Matrix]:
    talk: list[str] = []
    with Testbed(3, disk=DISK) as bed, as_client(bed):
        made = Matrix(bed, talk.append, nodes=2, steps=STEPS)
        try:
            made.measure_base()
            yield made
        finally:
            made.close()
            print("\n".join(talk))


@pytest.mark.parametrize("name", ["worker_kill", "node_gone"])
def test_a_job_recovers_from(matrix: Matrix, name: str) -> None:
    verdict = matrix.case(FAULTS[name], seed=1)
    print(line(verdict))
    assert verdict.good, verdict.problems
    assert verdict.restarts == 1
    assert verdict.losses == "equal"
