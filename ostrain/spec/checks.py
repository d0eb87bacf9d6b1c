"""What lies between values: job against inventory, layout against model, data against itself and memory."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.inventory import Inventory
from models.config import TrainConfig, unrunnable
from models.config.sample import sample_problems
from models.config.tasks import TASKS
from models.config.train_vae import unrunnable_vae
from ostrain.layout import Layout
from ostrain.spec.data_checks import data_problems, memory_problems
from ostrain.spec.document import Mapping, key_mark, value_mark
from ostrain.spec.job import JobSpec
from ostrain.spec.problems import Problem, did_you_mean, render_all
from ostrain.spec.service_checks import job_problems, service_problems

if TYPE_CHECKING:
    from ostrain.spec.load import LoadedJob

Found = Iterator[Problem]


@dataclass(frozen=True)
class Facts:
    """What the checks look at. ``left_out``: paths whose values are wrong in themselves and were taken out."""

    job: JobSpec
    tree: Mapping
    inventory: Inventory | None
    inventory_tree: Mapping | None
    left_out: frozenset[tuple[str, ...]]

    def sound(self, *paths: str) -> bool:
        """Whether nothing at, above or below the dotted paths was left out, so that a check of them makes sense."""
        for path in (tuple(dotted.split(".")) for dotted in paths):
            for gone in self.left_out:
                size = min(len(path), len(gone))
                if path[:size] == gone[:size]:
                    return False
        return True

    def problem(self, dotted: str, message: str) -> Problem:
        return Problem(value_mark(self.tree, tuple(dotted.split("."))), message)


def check_all(facts: Facts) -> list[Problem]:
    checks: tuple[tuple[Callable[[Facts], Found], tuple[str, ...]], ...] = (
        (_nodes, ("nodes", "cluster")),
        (_devices, ("nodes", "devices_per_node", "cluster")),
        (_layout, ("nodes", "devices_per_node", "layout", f"{facts.job.task}.layout", f"{facts.job.task}.model")),
        (_files, ("files", facts.job.task)),
    )
    found = [problem for check, needs in checks if facts.sound(*needs) for problem in check(facts)]
    sample = facts.job.sample
    if sample is not None and facts.sound("sample"):
        found += [facts.problem(f"sample.{'.'.join(path)}", why) for path, why in sample_problems(sample)]
    train = facts.job.train
    if train is None:
        return found
    if facts.sound("train.data", "train.autoencoder", "train.model"):
        found += [facts.problem(f"train.{path}", message) for path, message in data_problems(train)]
    if not found and facts.sound("train", "layout", "nodes", "devices_per_node") and facts.inventory is not None:
        found += list(_memory(facts, train, facts.inventory))
    return found


def task_problems(tree: Mapping) -> list[Problem]:
    """A job has exactly one task."""
    given = [name for name in TASKS if name in tree.items]
    if len(given) == 1:
        message = f"{given[0]!r} is no mapping of keys: name a recipe, or say what the task needs"
        return [Problem(key_mark(tree, (given[0],)), message)] if not isinstance(tree.items[given[0]], Mapping) else []
    if not given:
        others = ", ".join(name for name in TASKS if name != "train")
        told = f"; or another task: {others}" if others else ""
        return [
            Problem(tree.mark, f"'train' is missing (what is trained; a recipe and the keys that override it){told}")
        ]
    message = f"a job has one task; this one has {' and '.join(given)}: make a job of each"
    return [Problem(key_mark(tree, (name,)), message) for name in given[1:]]


def _nodes(facts: Facts) -> Found:
    inventory, wanted = facts.inventory, facts.job.nodes
    if inventory is None:
        return
    for path, message in job_problems(facts.job, inventory):
        yield facts.problem(path, message)
    if inventory.allocated:
        return
    there = len(inventory.nodes)
    if wanted > there:
        names = ", ".join(node.name for node in inventory.nodes[:8]) + (", …" if there > 8 else "")
        yield facts.problem("nodes", f"{wanted} nodes, but inventory {inventory.name} has {there} ({names})")
    elif wanted > 1:
        for index, node in enumerate(inventory.resolved()[:wanted]):
            if _is_loopback(node.address):
                message = (
                    f"{node.address} is a node's address for itself; the other nodes cannot reach {node.name} at it"
                )
                yield _inventory_problem(facts, index, "address" if inventory.nodes[index].address else "host", message)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address in ("localhost", "ip6-localhost")


def _inventory_problem(facts: Facts, index: int, key: str, message: str) -> Problem:
    if facts.inventory_tree is None:
        return facts.problem("cluster", message)
    return Problem(value_mark(facts.inventory_tree, ("nodes", str(index), key)), message)


def _devices(facts: Facts) -> Found:
    if facts.inventory is None:
        return
    wanted = facts.job.devices_per_node
    nodes = facts.inventory.resolved(facts.job.nodes)[: facts.job.nodes]
    short = [node for node in nodes if len(node.devices) < wanted]
    if short:
        names = ", ".join(f"{node.name} has {len(node.devices)}" for node in short[:4])
        more = f" (and {len(short) - 4} more nodes)" if len(short) > 4 else ""
        yield facts.problem("devices_per_node", f"{wanted} devices on every node, but {names}{more}")


def _layout(facts: Facts) -> Found:
    task, config = facts.job.task, facts.job.config
    degrees, model = config.layout, getattr(config, "model", None)
    layout = Layout(facts.job.nodes, facts.job.devices_per_node, degrees.sp, degrees.sp_kind, degrees.zero)
    for problem in layout.problems(getattr(model, "num_heads", layout.world)):
        path = problem.degree if problem.degree in ("nodes", "devices_per_node") else f"{task}.layout.{problem.degree}"
        yield facts.problem(path, problem.message)


def _files(facts: Facts) -> Found:
    """``files/NAME/…`` in the task's configuration needs NAME under ``files:``."""
    names = list(facts.job.files)
    for path, text in _texts(facts.job.config.model_dump(), facts.job.task):
        parts = text.split("/")
        if parts[0] == "files" and len(parts) > 1 and parts[1] not in names:
            known = f"it names {', '.join(names)}" if names else "it names none"
            message = (
                f"files/{parts[1]} has to be named under the job's `files:`; {known}{did_you_mean(parts[1], names)}"
            )
            yield facts.problem(path, message)


def _texts(value: object, path: str) -> Iterator[tuple[str, str]]:
    """(dotted path, text) of every text in a configuration."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _texts(item, f"{path}.{index}")


def _memory(facts: Facts, train: TrainConfig, inventory: Inventory) -> Found:
    nodes = inventory.resolved(facts.job.nodes)[: facts.job.nodes]
    memories = [node.device_memory for node in nodes if node.device_memory]
    there = min(memories, default=0)
    asked = train.max_device_memory or 0
    if there and asked > there:
        message = f"is more than the {there / 2**30:.1f} GB that inventory {inventory.name} says a device has"
        yield facts.problem("train.max_device_memory", message)
    limit, origin = (asked, "train.max_device_memory") if asked else (there, f"inventory {inventory.name}")
    if limit:
        world = facts.job.nodes * facts.job.devices_per_node
        dtype = "fp32" if inventory.device == "CPU" else ""
        for path, message in memory_problems(train, world, dtype, limit, origin):
            yield facts.problem(f"train.{path}" if path else "train.recipe", message)


def inventory_problems(inventory: Inventory, tree: Mapping) -> list[Problem]:
    """Names and hosts that stand twice; keys the backend has no use for."""
    found = list(service_problems(inventory, tree))
    for key in ("name", "host", "address"):
        first: dict[str, int] = {}
        for index, node in enumerate(inventory.nodes):
            value = getattr(node, key)
            if value is None:
                continue
            if value in first and _same_place(inventory, key, first[value], index):
                line = key_mark(tree, ("nodes", str(first[value]), key)).line + 1
                message = f"{key} {value!r} is used by two nodes (first in line {line})"
                found.append(Problem(value_mark(tree, ("nodes", str(index), key)), message))
            first.setdefault(value, index)
    if inventory.backend == "local" and len(inventory.nodes) > 1:
        message = f"the local backend has one node, not {len(inventory.nodes)}; say `backend: ssh`"
        found.append(Problem(value_mark(tree, ("backend",)), message))
    return found


def _same_place(inventory: Inventory, key: str, one: int, other: int) -> bool:
    """Two nodes may share a host when their ports differ (containers on one machine)."""
    nodes = inventory.resolved()
    return key != "host" or nodes[one].port == nodes[other].port


def runnable_problems(loaded: LoadedJob) -> list[Problem]:
    """What keeps a valid job from being submitted now: sources that are not on disk, what the payload cannot do yet."""
    found = []
    for name, path in loaded.sources.items():
        if not os.path.exists(path):
            found.append(Problem(loaded.mark("files", name), f"{path} does not exist"))
        elif not os.access(path, os.R_OK):
            found.append(Problem(loaded.mark("files", name), f"{path} cannot be read"))
    if loaded.job.launcher == "rank_table" and loaded.inventory.device == "CPU":
        message = "MindSpore reads rank tables on NPUs alone; on CPUs start with msrun or mpirun"
        found.append(Problem(loaded.mark("launcher"), message))
    train, train_vae = loaded.job.train, loaded.job.train_vae
    said = unrunnable(train) if train is not None else unrunnable_vae(train_vae) if train_vae is not None else []
    found += [Problem(loaded.mark(loaded.job.task, *where), why) for where, why in said]
    return found


def check_runnable(loaded: LoadedJob) -> list[str]:
    """``runnable_problems`` as rendered texts, in the form of SpecError's problems."""
    return render_all(runnable_problems(loaded))
