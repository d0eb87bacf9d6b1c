"""Facts of nodes: from an inventory's nodes, this machine, or files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.inventory import Inventory, ResolvedNode, local_inventory
from ostrain.errors import OstrainError, SpecError
from ostrain.paths import state_dir
from ostrain.plan import NodeAccess
from ostrain.ranktable.facts import NodeFacts, node_facts
from ostrain.ranktable.transcript import read_folder
from ostrain.ranktable.walk import address
from ostrain.spec.checks import inventory_problems
from ostrain.spec.document import DocumentError, load_document
from ostrain.spec.problems import did_you_mean, render_all
from ostrain.spec.resources import find_inventory, inventory_folders, inventory_names, shown_path
from ostrain.spec.translate import validate
from ostrain.states import ExitCode


@dataclass
class Gathered:
    """Facts of the nodes that answered. own: node -> the devices its inventory lists; errors: of those that did not."""

    facts: list[NodeFacts] = field(default_factory=list)
    transcripts: dict[str, str] = field(default_factory=dict)
    own: dict[str, Sequence[int]] = field(default_factory=dict)
    errors: list[OstrainError] = field(default_factory=list)


def from_files(path: Path, server_id: str = "", count: int | None = None) -> Gathered:
    """Transcripts or ``hccn.conf`` files: one file or folder a node (or one file for one node).

    server_id: what the table calls the node, for a single one. Raises OstrainError (exit 2).
    """
    transcripts = read_folder(path)
    transcripts = dict(list(transcripts.items())[: _enough(str(path), len(transcripts), count)])
    _one_node(server_id, len(transcripts))
    facts = [node_facts(name, text, server_id or _as_address(name)) for name, text in transcripts.items()]
    return Gathered(facts, transcripts)


def _as_address(name: str) -> str:
    """Files named after addresses name the servers."""
    return name if address(name) is not None else ""


def _one_node(server_id: str, count: int) -> None:
    if server_id and count != 1:
        raise OstrainError(
            f"--server-ip names one server, but there are {count} nodes",
            next_step="leave it out; servers are called by their nodes' addresses",
            exit_code=ExitCode.USAGE,
        )


def from_cluster(
    name: str,
    *,
    count: int | None = None,
    ipv6: bool = False,
    server_id: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Gathered:
    """Ask the nodes of an inventory (``local``: this machine). Nodes that cannot be reached are in ``errors``.

    progress: called with how many nodes have been asked, of how many.
    """
    from cluster.hccn import gather

    inventory = load_inventory(name)
    if inventory.allocated:
        raise OstrainError(
            f"inventory {inventory.name} lists no nodes: {inventory.backend} gives them when a job starts",
            next_step="name files instead, or an inventory with nodes",
            exit_code=2,
        )
    nodes = inventory.resolved()
    nodes = nodes[: _enough(inventory.name, len(nodes), count)]
    _one_node(server_id, len(nodes))
    done: list[str] = []

    def answered(node: str) -> None:
        done.append(node)
        progress(len(done), len(nodes))

    access = {node.name: _access(node) for node in nodes}
    answers = gather(access, inventory.backend, ipv6=ipv6, answered=answered)
    found = Gathered()
    for node in nodes:
        answer = answers[node.name]
        if isinstance(answer, OstrainError):
            found.errors.append(answer)
            continue
        found.transcripts[node.name] = answer
        named = server_id or ("" if inventory.backend == "local" else node.address.strip("[]"))
        found.facts.append(node_facts(node.name, answer, named))
        if inventory.backend != "local" and inventory.device == "Ascend":
            found.own[node.name] = node.devices
    return found


def _enough(name: str, there: int, count: int | None) -> int | None:
    if count is not None and count > there:
        raise OstrainError(
            f"{name} has {there} nodes, not {count}", next_step="say --nodes with fewer", exit_code=ExitCode.USAGE
        )
    return count


def _access(node: ResolvedNode) -> NodeAccess:
    return NodeAccess(
        node.host, node.user, node.port, node.identity_file, node.root, node.python, inventory=node.inventory
    )


def load_inventory(name: str) -> Inventory:
    """An inventory by name or path, ``local`` for this machine. Raises SpecError or OstrainError (exit 2)."""
    if name == "local":
        return local_inventory(str(state_dir()), sys.executable)
    beside = Path("job.yaml")  # names are looked up as of a job in this folder
    file = find_inventory(name, beside)
    if file is None:
        folders = ", ".join(shown_path(folder) for folder in inventory_folders(beside))
        raise OstrainError(
            f"there is no inventory {name!r}{did_you_mean(name, inventory_names(beside))}",
            why=f"looked in {folders}",
            next_step="give its path, or put it into one of these folders",
            exit_code=ExitCode.USAGE,
        )
    try:
        document = load_document(file, shown_path(file))
    except DocumentError as error:
        raise SpecError(render_all(error.problems), what="the inventory cannot be read") from None
    inventory, problems, _ = validate(Inventory, document)
    if inventory is not None:
        problems = inventory_problems(inventory, document)
    if inventory is None or problems:
        raise SpecError(render_all(problems), what="the inventory has problems", next_step="correct the places above")
    return inventory.found_in(file)


def save(folder: Path, transcripts: dict[str, str]) -> None:
    """Keep what nodes answered, a file each, to be read again by ``from_files``."""
    from models.files import write_atomic

    for name, text in transcripts.items():
        write_atomic(folder / f"{name}.txt", text.encode())
