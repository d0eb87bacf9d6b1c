"""Plans that are compiled again for other nodes, and what is carried over to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.checkpoint.manifest import Manifest, Shard
from ostrain.compiler import compile_plan
from ostrain.errors import SpecError
from ostrain.plan import LaunchPlan
from ostrain.spec import load_job
from ostrain.supervisor.pieces import Copy, needed
from ostrain.supervisor.resolved import attach, best_fit, disk_warning, recompiled, shape_of


def submitted(folder: Path, job: str, *settings: str, nodes: int = 5) -> LaunchPlan:
    lines = [f"  - {{name: n{number}, host: 10.0.0.{number + 1}}}\n" for number in range(nodes)]
    head = "name: inv\nbackend: ssh\ndevice: Ascend\ndefaults: {devices: 8, env: {Z: '1', A: '2'}}\nnodes:\n"
    (folder / "inv.yaml").write_text(head + "".join(lines))
    common = (f"cluster={folder}/inv.yaml", "nodes=4", "devices_per_node=8", "restart.max=2", "restart.spares=1")
    loaded = load_job(Path(job), (*common, *settings))
    return LaunchPlan.from_json(attach(compile_plan(loaded), loaded).to_json())  # as the store gives it back


@pytest.mark.parametrize("job", ["quickstart", "os12_stage3"])
def test_the_same_nodes_give_the_same_plan_to_the_byte(tmp_path: Path, job: str) -> None:
    plan = submitted(tmp_path, job, "env.HF_TOKEN.secret=hf", "env.B=x", "env.A=y", "train.data.max_image_size=null")
    assert recompiled(plan, [node.name for node in plan.nodes], None) == plan
    assert plan.secrets == {"HF_TOKEN": "hf"}


def test_a_spare_gets_the_ranks_of_the_node_that_it_replaces(tmp_path: Path) -> None:
    plan = submitted(tmp_path, "os12_stage3")
    assert [node.name for node in plan.spares] == ["n4"]
    made = recompiled(plan, ["n4", "n1", "n2", "n3"], None)
    assert made.nodes[0].ranks == plan.nodes[0].ranks
    assert (made.master_address, [node.name for node in made.spares]) == ("10.0.0.5", ["n0"])
    assert "10.0.0.5" in next(file.text for file in made.nodes[3].files if file.path == "launch.sh")
    assert recompiled(made, [f"n{number}" for number in range(4)], None).nodes == plan.nodes, "and back again"


def test_fewer_nodes_keep_the_global_batch(tmp_path: Path) -> None:
    plan = submitted(tmp_path, "os12_stage3")
    wanted, fit = shape_of(plan), best_fit(plan, 3)
    assert wanted is not None and fit is not None
    assert (fit.shape.nodes, fit.error, fit.shape.samples) == (2, 0.0, wanted.samples)
    made = recompiled(plan, ["n0", "n3"], fit)
    assert made.world == 16 and made.nodes[1].ranks == tuple(range(8, 16))
    config = next(file.text for file in made.nodes[0].files if file.path == "train.yaml")
    assert f"gradient_accumulation_steps: {fit.shape.accumulation}" in config
    assert shape_of(made) == wanted, "the job still wants what it wanted"
    assert best_fit(submitted(tmp_path, "os12_stage3", "restart.shrink=false"), 3) is None
    assert best_fit(submitted(tmp_path, "os12_stage3", "restart.min_nodes=3"), 2) is None


def test_spares_that_the_inventory_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        submitted(tmp_path, "quickstart", nodes=4)
    assert "1 spares beyond 4 nodes, but inventory inv has 4 nodes" in str(caught.value)


def test_checkpoints_that_go_with_one_disk_are_warned_of(tmp_path: Path) -> None:
    submitted(tmp_path, "quickstart")
    settings = (f"cluster={tmp_path}/inv.yaml", "nodes=2", "devices_per_node=8", "restart.max=1")
    assert "train.checkpoint.copies: 2" in disk_warning(load_job(Path("quickstart"), settings))
    assert disk_warning(load_job(Path("quickstart"), (*settings, "train.checkpoint.copies=2"))) == ""


MANIFEST = Manifest(
    8, 2, 1.0, 5, "s", {"model/w": (4,)},
    tuple(Shard(f"shard-{n}", 100 + n, f"h{n}", (f"n{n}",), (("model/w", 2 * n, 2 * n + 2),)) for n in range(2)),
)  # fmt: skip


def test_only_what_no_node_of_the_next_attempt_has_is_carried_over() -> None:
    at = "checkpoints/step-8/"
    both = {"n0": {f"{at}shard-0": 100, f"{at}state.json": 5}, "n1": {f"{at}shard-1": 101, f"{at}state.json": 5}}
    assert needed(MANIFEST, both, ("n0", "n1")) == []
    assert needed(MANIFEST, {**both, "n2": {}}, ("n0", "n2")) == [Copy(f"{at}shard-1", "n1", "n2", 101, "h1")]
    assert needed(MANIFEST, {"n0": both["n0"]}, ("n0",)) is None, "not whole any more"
    short = {**both, "n1": {**both["n1"], f"{at}shard-1": 50}}
    assert needed(MANIFEST, short, ("n0",)) is None, "half a file is none"
