"""From a job and its plan to what the inspector of every node is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.bundle import AGENT, build_bundle, build_source, hash_file
from cluster.inspector import tree_hash
from cluster.inventory import ResolvedNode
from models.cost import checkpoint_bytes
from ostrain.compiler import PAYLOAD_MODULES
from ostrain.plan import LaunchPlan, NodePlan
from ostrain.preflight.situation import ROOT, Wishes
from ostrain.spec.load import LoadedJob

SPEED_SECONDS, SPEED_BYTES = 0.5, 64 << 20
_EXPORT = re.compile(r"^export ([A-Za-z_][A-Za-z0-9_]*)=", re.MULTILINE)
# Keys of tasks that say where something is written: it need not be there.
_WRITTEN = frozenset({"dir", "output", "out"})
# Captions and the like may begin with a slash, too.
_WORDS = frozenset({"negative_prompt", "prompts"})
_LAUNCHERS = {"msrun": ("msrun",), "mpirun": ("mpirun",), "rank_table": ()}


def wishes(loaded: LoadedJob, plan: LaunchPlan) -> Wishes:
    """What the job wants of every node. Builds the archives that a submit pushes, to know their hashes."""
    job = loaded.job
    checkpoint, path = 0, ROOT
    if job.train is not None:
        copies = min(job.train.checkpoint.copies, job.nodes)
        checkpoint = checkpoint_bytes(job.train) * copies // job.nodes
        place = job.train.checkpoint.dir
        path = place if place.startswith(("/", "~/")) else ROOT
    return Wishes(
        config=job.check,
        checkpoint=checkpoint,
        checkpoint_path=path,
        files=dict(_named(job.config.model_dump(), job.task)),
        code=_pushed(plan),
        several=len(plan.nodes) > 1,
        handed=frozenset(name for file in plan.nodes[0].files if file.path == "launch.sh"
                         for name in _EXPORT.findall(file.text)),
    )  # fmt: skip


def _named(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """(path on the nodes, key) of everything a configuration reads from the nodes' own disks."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in _WRITTEN | _WORDS or (key == "prompts" and isinstance(item, str)):
                yield from _named(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _named(item, f"{path}.{index}")
    elif isinstance(value, str) and value.startswith(("/", "~/")) and "\n" not in value:
        yield value, path


def _pushed(plan: LaunchPlan) -> dict[str, tuple[str, str]]:
    import models

    package = Path(models.__file__ or "").parent
    bundle = tree_hash([("models", str(package)), ("agent.py", str(AGENT))])
    found = {f"bundles/{hash_file(build_bundle())}": ("the code", bundle)}
    for name, source in plan.sources.items():
        digest = hash_file(build_source(Path(source)))
        found[f"files/{digest}"] = (f"files/{name}", tree_hash([("content", source)]))
    return found


def requests(loaded: LoadedJob, plan: LaunchPlan, wanted: Wishes) -> dict[str, dict[str, dict[str, Any]]]:
    """Node -> part -> options, for ``cluster/inspector.py``."""
    nodes = {node.name: node for node in loaded.inventory.resolved()}
    return {node.name: _node_parts(loaded, plan, wanted, node, nodes[node.name]) for node in plan.nodes}


def _node_parts(
    loaded: LoadedJob, plan: LaunchPlan, wanted: Wishes, node: NodePlan, resolved: ResolvedNode
) -> dict[str, dict[str, Any]]:
    ascend = plan.device.lower() == "ascend"
    script = next((file.text for file in node.files if file.path == "env.sh"), "")
    paths = list(dict.fromkeys([ROOT, wanted.checkpoint_path]))
    parts: dict[str, dict[str, Any]] = {
        "identity": {},
        "software": {
            "setup": [*resolved.setup, *loaded.job.setup],
            "script": script,
            "secrets": sorted(plan.secrets),
            "python": node.access.python,
            "modules": list(PAYLOAD_MODULES),
            "programs": ["bash", *_LAUNCHERS[plan.launcher]],
            "ascend": ascend,
        },
        "processes": {},
        "network": _network(plan, node, resolved, ascend),
        "disk": {"paths": paths},
        "speed": {"paths": [wanted.checkpoint_path], "seconds": SPEED_SECONDS, "bytes": SPEED_BYTES},
        "files": {"paths": list(wanted.files)},
        "code": {"names": list(wanted.code)},
    }
    if ascend:
        parts["devices"] = {"devices": list(node.devices), "link": wanted.several}
    return parts


def _network(plan: LaunchPlan, node: NodePlan, resolved: ResolvedNode, ascend: bool) -> dict[str, Any]:
    first = node.name == plan.nodes[0].name
    return {
        "address": node.address,
        "master": plan.master_address,
        "interface": resolved.interface,
        "port": plan.master_port if first else 0,
        "knock": plan.nodes[0].access.port or 22,
        "hccl": ascend and len(plan.nodes) > 1,
    }
