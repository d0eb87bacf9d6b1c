"""Every line of `ostrain check`, made to fail on a real node: exactly that line, with the right exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cluster.backend import RunRef
from cluster.bundle import build_bundle
from ostrain.cli.check import check, loaded_plan
from ostrain.cli.common import opened_backend
from ostrain.preflight.checks import CHECKS
from tests.cluster.preflight_faults import FAULTS, HOME, Site, broken, furnish
from tests.cluster.toys import good
from tests.testbed import Testbed

pytestmark = pytest.mark.nodes
UNREACHABLE = {"reach", "host_key", "user"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("preflight")
    with pytest.MonkeyPatch.context() as patch, Testbed(2, npus=2) as bed:
        for name, value in bed.environment().items():
            patch.setenv(name, value)
        furnish(bed, sys.executable)
        inventory = folder / "bed.yaml"
        text = bed.inventory().replace(f"python: {json.dumps(sys.executable)}", f"python: {HOME}/python3")
        inventory.write_text(text.replace("defaults:\n", f"defaults:\n  setup: [{HOME}/setup.sh]\n"))
        made = Site(bed, inventory)
        made.settings = [
            f"cluster={inventory}", "nodes=2", "devices_per_node=2", f"train.init_from={HOME}/weights.safetensors",
            "check.checkpoint_time=2s",
        ]  # fmt: skip
        words = [setting.partition("=") for setting in made.settings]
        _, plan = loaded_plan(Path("quickstart"), tuple("".join(word) for word in words))
        with opened_backend(plan) as backend:
            good(backend.stage(RunRef("pushed", plan), build_bundle()))
        yield made


def looked(site: Site, *options: str, settings: tuple[str, ...] = ()) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, verdicts and talk of `ostrain check`, in this process: the connection is new each time."""
    words = [word for one in (*site.settings, *settings) for word in ("--set", one)]
    arguments = ["quickstart", "--json", "--no-canary", *options, *words]
    result = CliRunner().invoke(check, arguments, standalone_mode=False)
    assert result.exception is None, result.exception
    return int(result.return_value), json.loads(result.stdout)["checks"], result.stderr


def bad(verdicts: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(one["check"], one["node"]) for one in verdicts if one["verdict"] == "fail"]


def test_a_sound_pair_of_nodes_passes_every_line(site: Site) -> None:
    code, verdicts, talk = looked(site, "--fresh")
    assert (code, bad(verdicts)) == (0, []), talk
    assert [one for one in verdicts if one["verdict"] != "ok"] == []
    assert {one["check"] for one in verdicts} == {line.name for line in CHECKS}
    assert all(one["what"] for one in verdicts)


@pytest.mark.parametrize("line", FAULTS)
def test_exactly_the_broken_line_fails(site: Site, line: str) -> None:
    with broken(site, line) as word:
        code, verdicts, _ = looked(site, "--fresh")
    assert bad(verdicts) == [(line, "node-1")]
    assert code == (4 if line in UNREACHABLE else 3)
    told = next(one for one in verdicts if one["verdict"] == "fail")
    assert word in told["what"]
    assert told["why"] and told["next"]
    assert code == 4 or {one["node"] for one in verdicts} == {"node-0", "node-1"}


def test_every_line_has_a_fault() -> None:
    assert set(FAULTS) == {line.name for line in CHECKS}


def test_what_passed_is_remembered_and_what_failed_is_not(site: Site) -> None:
    looked(site, "--fresh")
    with broken(site, "cann"):
        code, verdicts, talk = looked(site)
        assert (code, bad(verdicts)) == (0, []), "versions seldom change: remembered"
        assert "--fresh asks again" in talk
        code, verdicts, talk = looked(site, "--fresh")
        assert bad(verdicts) == [("cann", "node-1")]
        code, verdicts, talk = looked(site)
        assert bad(verdicts) == [("cann", "node-1")], "a failure is asked anew"
    assert looked(site)[0] == 0
    with broken(site, "busy"):
        assert bad(looked(site)[1]) == [("busy", "node-1")], "devices are asked every time"
    assert looked(site, settings=("check.expire=0s",))[2].find("--fresh") == -1


def test_a_line_can_be_left_out_and_idle_memory_is_not_busy(site: Site) -> None:
    with broken(site, "tls"):
        code, verdicts, _ = looked(site, settings=("check.skip=[tls]",))
    assert code == 0
    assert [one["check"] for one in verdicts if one["verdict"] == "skip"] == ["tls"]


def test_the_inspector_leaves_nothing_behind(site: Site) -> None:
    looked(site, "--fresh")
    before = sorted(str(path) for path in (site.node.home / ".ostrain").rglob("*"))
    looked(site, "--fresh")
    assert sorted(str(path) for path in (site.node.home / ".ostrain").rglob("*")) == before
