"""What fuzzing found, kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.checkpoint.manifest import BadManifest, Manifest
from ostrain.errors import SpecError
from ostrain.spec import load_job
from tests.fuzz.targets import INVENTORY, JOB, MANIFEST_GOOD, sealed


@pytest.mark.parametrize(
    ("job", "inventory", "place", "what"),
    [
        (JOB.partition("train:")[0] + "train:\n", INVENTORY, "job.yaml:6:1", "'train' is no mapping"),
        (JOB.partition("train:")[0] + "train: false\n", INVENTORY, "job.yaml:6:1", "'train' is no mapping"),
        (JOB.partition("train:")[0] + "train: []\n", INVENTORY, "job.yaml:6:1", "'train' is no mapping"),
        (JOB, INVENTORY.replace("name: c", "name: " + "1" * 400), "c.yaml:1:7", "is no finite number"),
        (JOB.replace("steps: 20", "steps: " + "9" * 400), INVENTORY, "job.yaml:9:10", "is no finite number"),
    ],
)
def test_problems_in_words(tmp_path: Path, job: str, inventory: str, place: str, what: str) -> None:
    (tmp_path / "clusters").mkdir()
    (tmp_path / "clusters" / "c.yaml").write_text(inventory)
    (tmp_path / "job.yaml").write_text(job)
    with pytest.raises(SpecError) as caught:
        load_job(tmp_path / "job.yaml")
    assert any(place in problem and what in problem for problem in caught.value.problems), caught.value.problems


@pytest.mark.parametrize(
    ("name", "value"), [("file", None), ("file", "../../x"), ("file", "/etc/x"), ("size", None), ("size", -1)]
)
def test_a_manifest_with_odd_values_is_damaged(name: str, value: Any) -> None:
    record = json.loads(MANIFEST_GOOD.encode())
    record["shards"][0][name] = value
    with pytest.raises(BadManifest, match="is damaged"):
        Manifest.decode(sealed(record))
    assert Manifest.decode(MANIFEST_GOOD.encode()) == MANIFEST_GOOD
