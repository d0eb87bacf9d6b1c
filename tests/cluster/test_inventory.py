"""Inventories: defaults, checks with places, and the built-in ``local``."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.inventory import LOCAL_SLOTS, Inventory, local_inventory
from ostrain.spec import load_job
from tests.ostrain.spec_helpers import INVENTORY, place, problems, the_problem, write_inventory, write_job

HEAD = "name: j\ncluster: duo\ndevices_per_node: 8\n"


def test_nodes_take_what_they_do_not_say_from_the_defaults() -> None:
    inventory = Inventory.model_validate(
        {
            "name": "c",
            "defaults": {"user": "u", "devices": 4, "env": {"A": "1", "B": "1"}, "setup": ["/s"], "port": 22},
            "nodes": [{"name": "a"}, {"name": "b", "host": "h", "devices": [3, 1], "env": {"B": "2"}, "setup": []}],
        }
    )
    first, second = inventory.resolved()
    assert (first.host, first.address, first.devices, first.setup) == ("a", "a", (0, 1, 2, 3), ("/s",))
    assert (second.host, second.address, second.devices, second.setup) == ("h", "h", (3, 1), ())
    assert (first.env, second.env, second.user) == ({"A": "1", "B": "1"}, {"A": "1", "B": "2"}, "u")
    assert (first.root, first.python, first.device_memory) == ("~/.ostrain", "python3", 0)


@pytest.mark.parametrize(
    ("old", "new", "row_column_word", "words"),
    [
        ("host: 192.0.2.1}", "hoost: 192.0.2.1}", (6, 15, "hoost"), "did you mean 'host'?"),
        ("name: b", "name: a", (7, 12, "a"), "name 'a' is used by two nodes (first in line 6)"),
        ("192.0.2.2", "192.0.2.1", (7, 21, "192.0.2.1"), "host '192.0.2.1' is used by two nodes"),
        ("backend: ssh", "backend: nomad", (2, 10, "nomad"), "not one of local, ssh, slurm, modelarts"),
        ("backend: ssh", "backend: local", (2, 10, "local"), "the local backend has one node"),
        ("devices: 8", "devices: [0, 0]", (4, 21, "[0, 0]"), "device 0 is listed twice"),
        ("devices: 8", "devices: many", (4, 21, "many"), "needs a whole number or a list"),
        ("devices: 8", "devices: 0", (4, 21, "0"), "at least 1"),
        ("devices: 8", "devices: 8, port: 0", (4, 30, "0"), "at least 1"),
        ("devices: 8", "devices: 8, interface: =eth0", (4, 35, "=eth0"), "not the name of a network interface"),
        ("host: 192.0.2.2", "host: -oProxyCommand=x", (7, 21, "-oProxyCommand=x"), "cannot start with '-'"),
        ("host: 192.0.2.2", 'host: "a\\nb"', (7, 21, '"a\\nb"'), "control character"),
        ("host: 192.0.2.2", "host: 192.0.2.2, address: 127.0.0.1", (7, 41, "127.0.0.1"), "a node's address for itself"),
        ("name: b", "name: b/c", (7, 12, "b/c"), "make a node's name"),
        ("nodes:", "nodes: []\nold:", (5, 8, "[]"), "too short; 1 or more"),
    ],
)  # fmt: skip
def test_mistakes_have_places_in_the_inventory(
    tmp_path: Path, old: str, new: str, row_column_word: tuple[int, int, str], words: str
) -> None:
    text = INVENTORY.replace(old, new)
    if "old:" in new:
        text = text[: text.index("old:")]
    write_inventory(tmp_path, text)
    problem = the_problem(write_job(tmp_path, "nodes: 2\n", head=HEAD))
    assert words in problem and problem.startswith(str(tmp_path / "clusters/duo.yaml"))
    assert place(problem) == row_column_word


def test_two_nodes_may_share_a_host_on_different_ports(tmp_path: Path) -> None:
    write_inventory(tmp_path, INVENTORY.replace("host: 192.0.2.2", "host: 192.0.2.1, port: 2222"))
    assert load_job(write_job(tmp_path, "nodes: 2\n", head=HEAD)).inventory.nodes[1].port == 2222


def test_a_job_cannot_ask_for_more_than_there_is(tmp_path: Path) -> None:
    write_inventory(tmp_path, INVENTORY.replace("192.0.2.2", "192.0.2.2, devices: 4"))
    assert any(
        "3 nodes, but inventory duo has 2 (a, b)" in p for p in problems(write_job(tmp_path, "nodes: 3\n", head=HEAD))
    )
    assert "8 devices on every node, but b has 4" in the_problem(write_job(tmp_path, "nodes: 2\n", head=HEAD))
    assert load_job(write_job(tmp_path, "nodes: 1\n", head=HEAD))


def test_where_inventories_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    path = write_job(jobs, head=HEAD)
    assert "there is no inventory 'duo'" in the_problem(path)
    (tmp_path / "config/ostrain").mkdir(parents=True)
    write_inventory(tmp_path / "config/ostrain", INVENTORY.replace("name: duo", "name: from-config"))
    assert load_job(path).inventory.name == "from-config"
    beside = write_inventory(jobs)
    assert load_job(path).inventory.name == "duo"
    assert load_job(path, ["cluster=clusters/duo.yaml"]).inventory.name == "duo"
    assert load_job(path, [f"cluster={beside}"]).inventory.name == "duo"
    assert load_job(path, ["cluster=atlas-800t-a2"]).inventory.name == "atlas-800t-a2"
    assert "did you mean 'duo'?" in the_problem(path, "cluster=duoo")


def test_local_has_its_npus_or_cpu_workers(tmp_path: Path) -> None:
    bare = local_inventory("/state", "/py/bin/python", tmp_path).resolved()[0]
    assert (len(bare.devices), bare.root, bare.python, bare.address) == (
        LOCAL_SLOTS,
        "/state",
        "/py/bin/python",
        "127.0.0.1",
    )
    for name in ("davinci0", "davinci3", "davinci10", "davinci_manager"):
        (tmp_path / name).touch()
    inventory = local_inventory("/state", "/py/bin/python", tmp_path)
    assert (inventory.device, inventory.resolved()[0].devices) == ("Ascend", (0, 3, 10))
