"""From a checked job to its LaunchPlan: per node its files, its ranks, its command. Touches no network and no clock."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from cluster.inventory import ResolvedNode
from models.config import TaskConfig
from models.cost import checkpoint_bytes
from ostrain.environment import Env, Expand, Secret
from ostrain.launch_files import LaunchFiles
from ostrain.layout import Layout
from ostrain.plan import LaunchPlan, NodeAccess, NodePlan, PlanFile
from ostrain.service_files import service_facts, service_files
from ostrain.spec.load import LoadedJob
from ostrain.templating import Templates

DEFAULT_PORT = 8118
LARGE_WORLD = 128
HUGE_WORLD = 1000
# What has to be on a node's PATH beside bash.
_STARTERS = {"msrun": ("msrun",), "mpirun": ("mpirun",), "rank_table": ()}
PAYLOAD_MODULES = ("mindspore", "numpy", "av", "safetensors", "tensorboardX", "psutil", "pydantic", "PIL", "yaml")
Preset = tuple[str, "str | Expand", str]


def compile_plan(loaded: LoadedJob) -> LaunchPlan:
    """The plan of a job. Pure: the same job gives the same plan, and a large one takes time in proportion."""
    return _Compiler(loaded).plan()


@dataclass
class _Compiler:
    loaded: LoadedJob
    templates: Templates = field(default_factory=Templates)
    env_texts: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        job, inventory = self.loaded.job, self.loaded.inventory
        degrees = job.config.layout
        self.job = job
        self.layout = Layout(job.nodes, job.devices_per_node, degrees.sp, degrees.sp_kind, degrees.zero)
        self.device = inventory.device
        self.nodes = inventory.resolved(job.nodes)[: job.nodes]
        self.master = _bare(self.nodes[0].address) if job.nodes > 1 else "127.0.0.1"
        self.secrets: dict[str, str] = {}
        table = self.loaded.rank_table
        self.launch = LaunchFiles(self.templates, self.job.launcher, table.text if table is not None else "")

    def plan(self) -> LaunchPlan:
        config = PlanFile(f"{self.job.task}.yaml", config_yaml(self.job.config, self.job.name))
        nodes = tuple(self.node(index, node, config) for index, node in enumerate(self.nodes))
        port = self.job.master_port
        return LaunchPlan(
            name=self.job.name,
            backend=self.loaded.inventory.backend,
            launcher=self.job.launcher,
            device=self.device,
            layout=self.layout.to_dict(),
            world=self.layout.world,
            master_address=self.master,
            master_port=port if isinstance(port, int) else 0,
            task=self.job.task,
            steps=self.job.config.total_steps,
            nodes=nodes,
            sources=self.loaded.sources,
            secrets=dict(sorted(self.secrets.items())),
            checks=self.checks(),
            service=service_facts(self.loaded),
        )

    def node(self, index: int, node: ResolvedNode, config: PlanFile) -> NodePlan:
        python = self.job.python or node.python
        devices = self.devices(index, node)
        return NodePlan(
            name=node.name,
            node_rank=index,
            access=NodeAccess(
                node.host, node.user, node.port, node.identity_file, node.root, python, inventory=node.inventory
            ),
            address=_bare(node.address) if self.job.nodes > 1 else self.master,
            ranks=self.layout.ranks_of_node(index),
            devices=devices,
            command=("bash", "launch.sh"),
            files=(
                *self.launch.files(self.launch_values(index, node, python, devices)),
                PlanFile("env.sh", self.env_text(node), 0o600),
                config,
                *service_files(self.loaded, index, python, self.templates),
            ),
        )

    def devices(self, index: int, node: ResolvedNode) -> tuple[int, ...]:
        """Physical ids by local rank: as the inventory lists them, or as the rank table does."""
        table = self.loaded.rank_table
        return table.devices[index] if table is not None else node.devices[: self.job.devices_per_node]

    def launch_values(self, index: int, node: ResolvedNode, python: str, devices: tuple[int, ...]) -> dict[str, Any]:
        """What a launcher's template knows of a node."""
        ascend = self.device == "Ascend"
        port = self.job.master_port
        return {
            "job": self.job.name,
            "task": self.job.task,
            "node": node.name,
            "nodes": self.job.nodes,
            "node_rank": index,
            "workers": self.layout.world,
            "local_workers": self.job.devices_per_node,
            "master_address": self.master,
            "master_port": port if isinstance(port, int) else DEFAULT_PORT,
            "cluster_time_out": 1800 if self.layout.world > LARGE_WORLD else 600,
            "setup": [*node.setup, *self.job.setup],
            "presets": list(self.presets(node)),
            "devices": ",".join(map(str, devices)) if ascend else "",
            # With every device of the node in its own order the driver's numbering is right as it is.
            "subset": devices != node.devices or devices != tuple(range(len(devices))),
            "python": python,
            "threads": not ascend,
            "bind_cores": ascend and self.job.bind_cores == "auto",
        }

    def presets(self, node: ResolvedNode) -> Iterator[Preset]:
        """Environment worth having unless the job says otherwise: (name, value, why)."""
        several, world = self.job.nodes > 1, self.layout.world
        if several:
            alike = "two nodes of one host name would count their devices together"
            yield "HOSTNAME", Expand(expand="$OSTRAIN_NODE"), alike
            if node.interface:
                yield "GLOO_SOCKET_IFNAME", node.interface, "collectives between hosts"
            if world > LARGE_WORLD:
                yield "MS_NODE_TIMEOUT", "900", "many nodes come up slowly"
        if self.device != "Ascend":
            return
        yield "ASCEND_PROCESS_LOG_PATH", Expand(expand="$OSTRAIN_LOG_DIR/plog"), "each attempt keeps its own"
        if several:
            yield (
                "HCCL_CONNECT_TIMEOUT",
                "7200" if world > HUGE_WORLD else "1200",
                "seconds to wait for the slowest node",
            )
            yield (
                "HCCL_EXEC_TIMEOUT",
                "3604",
                "seconds a rank may be late: checkpoints, compilation; 53 x 68 as 910A has it",
            )
            version = _ip_version(node.address)
            if version:
                yield "HCCL_IF_IP", _bare(node.address), "this node as the others reach it"
            if version == 6:
                yield "HCCL_SOCKET_FAMILY", "AF_INET6", "HCCL looks for IPv4 addresses unless told"
            if node.interface:
                yield "HCCL_SOCKET_IFNAME", f"={node.interface}", "exactly this interface"

    def env_text(self, node: ResolvedNode) -> str:
        """env.sh: secrets first, since expanded values may use them, then all values in the order they were written.

        Nodes of one inventory share most of it: the text is rendered once for each distinct environment.
        """
        merged: Env = {**node.env, **self.job.env}
        secrets = [(key, value.secret) for key, value in merged.items() if isinstance(value, Secret)]
        self.secrets.update(secrets)
        values = [(key, value) for key, value in merged.items() if not isinstance(value, Secret)]
        key = (*secrets, *values)
        if key not in self.env_texts:
            self.env_texts[key] = self.templates.render("env.sh.j2", job=self.job.name, secrets=secrets, values=values)
        return self.env_texts[key]

    def common_devices(self) -> list[int]:
        """Physical ids that the job uses on every node."""
        used = [set(node.devices[: self.job.devices_per_node]) for node in self.nodes]
        return sorted(set.intersection(*used))

    def checks(self) -> dict[str, Any]:
        """What a node has to have before a start."""
        # A bare `python3` after setup scripts may be one that only they put on PATH: nothing to look at before.
        hidden = any("/" not in (self.job.python or node.python) for node in self.nodes) and any(
            [self.job.setup, *(node.setup for node in self.nodes)]
        )
        return {
            "device": self.device,
            "devices": self.common_devices() if self.device == "Ascend" else [],
            "min_free_bytes": max(256 << 20, checkpoint_bytes(self.job.train) if self.job.train is not None else 0),
            "modules": [] if hidden else list(PAYLOAD_MODULES),
            "programs": ["bash"] if hidden else ["bash", *_STARTERS[self.job.launcher]],
        }


class _Dumper(yaml.SafeDumper):
    """Lists and buckets on one line each, sections as blocks."""


def _list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)


def _dict(dumper: yaml.SafeDumper, value: dict[Any, Any]) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", value, flow_style=all(isinstance(k, int) for k in value))


_Dumper.add_representer(list, _list)
_Dumper.add_representer(dict, _dict)


def config_yaml(config: TaskConfig, job: str) -> str:
    """The payload's whole configuration, every key in the schema's order.

    ``recipe`` is left empty: its values are in here already, and a payload that read it again would undo a job that
    took something out of it.
    """
    data = _plain({**config.model_dump(), "recipe": ""})
    origin = f"recipe {config.recipe} and " if config.recipe else ""
    head = f"# Resolved from {origin}job {job}; nothing is left to defaults.\n"
    return head + yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def _plain(value: Any) -> Any:
    """Tuples as lists: YAML has no others."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _bare(address: str) -> str:
    """An IPv6 address without its brackets."""
    return address[1:-1] if address.startswith("[") and address.endswith("]") else address


def _ip_version(address: str) -> int:
    """4 or 6; 0 for a name."""
    try:
        return ipaddress.ip_address(_bare(address)).version
    except ValueError:
        return 0
