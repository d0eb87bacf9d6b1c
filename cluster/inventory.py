"""The inventory: which nodes there are, how to reach them, which devices they hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr

from cluster.modelarts_inventory import ModelArts
from cluster.slurm_inventory import SlurmSection
from models.units import Size
from ostrain.environment import Env, Line, Part

_NODE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\Z")
LOCAL_SLOTS = 64
SERVICES = ("slurm", "modelarts")  # backends that give nodes at the start; each has a section of its name


def _node_name(value: str) -> str:
    if not _NODE_NAME.match(value):
        raise ValueError("letters, digits, . _ - make a node's name (at most 63, the first and last no sign)")
    return value


def _no_option(value: str) -> str:
    if value.startswith("-"):
        raise ValueError("cannot start with '-'")
    if not value:
        raise ValueError("cannot be empty")
    return value


def _node_path(value: str) -> str:
    if not value.startswith(("/", "~/")) or value in ("/", "~/"):
        raise ValueError(f"{value!r} has to start with / or ~/ (the node's home)")
    return value


def _python(value: str) -> str:
    return _node_path(value) if "/" in value else _no_option(value)


def _interface(value: str) -> str:
    if not re.fullmatch(r"[^\s/:=^,]{1,15}", value):
        raise ValueError("is not the name of a network interface (as `ip link` prints it, at most 15 characters)")
    return value


def _device_list(value: int | list[int]) -> int | list[int]:
    if isinstance(value, list):
        if not value:
            raise ValueError("an empty list; leave the node out instead")
        twice = sorted({number for number in value if value.count(number) > 1})
        if twice:
            raise ValueError(f"device {twice[0]} is listed twice")
    return value


NodeName = Annotated[Line, AfterValidator(_node_name)]
Host = Annotated[Line, AfterValidator(_no_option)]
NodePath = Annotated[Line, AfterValidator(_node_path)]
Python = Annotated[Line, AfterValidator(_python)]
Count = Annotated[int, Field(ge=1, le=1024)]
DeviceId = Annotated[int, Field(ge=0, le=1023)]
Devices = Annotated[Count | list[DeviceId], AfterValidator(_device_list)]
Port = Annotated[int, Field(ge=1, le=65535)]
Interface = Annotated[Line, AfterValidator(_interface)]


class NodeDefaults(Part):
    """What nodes have in common; every key may be said again for a single node."""

    user: Host | None = Field(None, description="user to log in as; default: as ~/.ssh/config says")
    port: Port | None = Field(None, description="SSH port; default: as ~/.ssh/config says")
    identity_file: Host | None = Field(None, description="private key on the submitting machine")
    devices: Devices | None = Field(None, description="number of devices, or the list of their physical ids")
    device_memory: Size | None = Field(None, description="memory of one device, for example 64GB")
    python: Python | None = Field(None, description="Python of the environment that holds MindSpore")
    root: NodePath | None = Field(None, description="folder ostrain keeps everything in; default ~/.ostrain")
    setup: list[NodePath] | None = Field(None, description="scripts to source before a start, in this order")
    interface: Interface | None = Field(None, description="network interface the nodes reach each other through")
    env: Env = Field(default_factory=dict, description="environment of every job on these nodes")


class Node(NodeDefaults):
    """One node."""

    name: NodeName = Field(description="name ostrain shows the node under")
    host: Host | None = Field(None, description="name or address to log in at, or an alias of ~/.ssh/config")
    address: Host | None = Field(None, description="address the other nodes reach it at; default: host")


class Inventory(Part):
    """A cluster: its backend, its kind of device, its nodes. Order of nodes is the order ranks are placed in."""

    name: NodeName = Field(description="the cluster's name")
    backend: Literal["local", "ssh", "slurm", "modelarts"] = Field("ssh", description="how ostrain reaches the nodes")
    device: Literal["Ascend", "CPU"] = Field("Ascend", description="what the workers compute on")
    facts: Host | None = Field(
        None,
        description="folder beside this file with what the nodes' devices said: ostrain ranktable make --save-facts",
    )
    defaults: NodeDefaults = Field(default_factory=NodeDefaults, description="what all nodes have in common")
    nodes: list[Node] = Field(
        default_factory=list,
        min_length=1,
        description="the nodes, in the order ranks are placed in; not where a service gives them",
    )
    slurm: SlurmSection | None = Field(None, description="for backend slurm: what Slurm is asked for")
    modelarts: ModelArts | None = Field(None, description="for backend modelarts: project, pool, image, storage")
    _file: str = PrivateAttr("")

    def found_in(self, file: Path) -> Inventory:
        """The same inventory, knowing the file it was read from."""
        found = self.model_copy()
        found._file = str(file.resolve())
        return found

    @property
    def allocated(self) -> bool:
        """Whether a service gives the nodes at the start, as many as a job asks for; then none are listed here."""
        return self.backend in SERVICES

    @property
    def service(self) -> dict[str, Any]:
        """What the backend of a service wants to know, as plain data; nothing for listed nodes."""
        section: Part | None = getattr(self, self.backend, None) if self.allocated else None
        return section.model_dump(mode="json", exclude_defaults=True) if section is not None else {}

    def resolved(self, wanted: int = 0) -> list[ResolvedNode]:
        """Every listed node with the defaults filled in; of a service's nodes, ``wanted`` many."""
        if self.allocated:
            names = [Node(name=f"node-{index}") for index in range(wanted)]
            return [ResolvedNode.build(node, self.defaults) for node in names]
        return [ResolvedNode.build(node, self.defaults, self._file) for node in self.nodes]


class ResolvedNode(Part):
    """A node with all defaults filled in. ``devices`` are physical ids; ``device_memory`` is in bytes, 0 = unknown.

    inventory: the file that lists it, empty where there is none.
    """

    name: str
    host: str
    address: str
    user: str
    port: int
    identity_file: str
    devices: tuple[int, ...]
    device_memory: int
    python: str
    root: str
    setup: tuple[str, ...]
    interface: str
    env: Env
    inventory: str = ""

    @classmethod
    def build(cls, node: Node, defaults: NodeDefaults, inventory: str = "") -> ResolvedNode:
        def pick(key: str, fallback: Any) -> Any:
            own = getattr(node, key)
            return own if own is not None else (common if (common := getattr(defaults, key)) is not None else fallback)

        devices = pick("devices", 8)
        host = node.host or node.name
        return cls.model_construct(
            name=node.name,
            host=host,
            address=node.address or host,
            user=pick("user", ""),
            port=pick("port", 0),
            identity_file=pick("identity_file", ""),
            devices=tuple(range(devices)) if isinstance(devices, int) else tuple(devices),
            device_memory=pick("device_memory", 0),
            python=pick("python", "python3"),
            root=pick("root", "~/.ostrain"),
            setup=tuple(pick("setup", ())),
            interface=pick("interface", ""),
            env={**defaults.env, **node.env},
            inventory=inventory,
        )


def local_inventory(state_root: str, python: str, devices: Path = Path("/dev")) -> Inventory:
    """The built-in inventory ``local``: this machine, its NPUs (``/dev/davinciN``) or else up to 64 CPU workers.

    state_root: folder that takes the place of ``~/.ostrain``; python: the interpreter that runs ostrain.
    """
    found = sorted(int(path.name[7:]) for path in devices.glob("davinci[0-9]*") if path.name[7:].isdigit())
    node = Node(
        name="local",
        host="localhost",
        address="127.0.0.1",
        devices=found or LOCAL_SLOTS,
        python=python,
        root=state_root,
    )
    return Inventory(name="local", backend="local", device="Ascend" if found else "CPU", nodes=[node])
