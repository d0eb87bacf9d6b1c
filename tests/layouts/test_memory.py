"""Peak memory of ZeRO stages against theory. Stages 1 and 2 are the same when they run eagerly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.layouts.compare import launch

pytestmark = [pytest.mark.train, pytest.mark.timeout(300)]

# Freed memory goes back at once, so that what is resident is what is in use.
HONEST = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_peak_is_within_a_tenth_of_theory(tmp_path: Path, zero: int) -> None:
    launch(tmp_path, 2, ["-m", "tests.layouts.memory", str(tmp_path), str(zero)], 240, **HONEST)
    for rank in range(2):
        facts = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert facts["measured"] == pytest.approx(facts["theory"], rel=0.1), facts
