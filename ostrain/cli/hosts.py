"""``ostrain hosts``: host keys of a cluster, pinned beside its inventory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster.backend import NodeError
from ostrain.cli.common import json_option
from ostrain.errors import OstrainError
from ostrain.plan import NodeAccess
from ostrain.states import ExitCode
from ostrain.talk import emit_json, say, table

if TYPE_CHECKING:
    from cluster.host_keys import Offered
    from cluster.hosts_lock import Pin


@click.group()
def hosts() -> None:
    """Pin the host keys of a cluster in a file that can be reviewed, hosts.lock beside its inventory."""


@hosts.command()
@click.argument("cluster")
@click.argument("nodes", nargs=-1, metavar="[NODE]…")
@click.option("-y", "--yes", is_flag=True, help="Do not ask. Keys that would replace pinned ones are still refused.")
@click.option("--replace", is_flag=True, help="Let other keys take the place of pinned ones: nodes set up anew.")
@json_option
def trust(cluster: str, nodes: tuple[str, ...], yes: bool, replace: bool, as_json: bool) -> int:
    """Fetch the host keys of CLUSTER's nodes (or of some), show their fingerprints, and pin them.

    CLUSTER is an inventory's name or path. Compare the fingerprints with the nodes' own (`ssh-keygen -lf
    /etc/ssh/ssh_host_ed25519_key.pub` there): what is pinned is what ostrain will believe.
    """
    from cluster.host_keys import scan
    from cluster.hosts_lock import merged, read_lock, write_lock

    accesses, lock = _nodes_of(cluster, nodes)
    old = read_lock(lock)
    answers = scan(accesses)
    offered = {name: one for name, one in answers.items() if not isinstance(one, NodeError)}
    errors = {name: one for name, one in answers.items() if isinstance(one, NodeError)}
    rows = [row for name, one in offered.items() for row in _rows(name, one, old)]
    say(table([_shown(row) for row in rows], ("NODE", "HOST", "TYPE", "FINGERPRINT", "KNOWN_HOSTS", "HOSTS.LOCK")))
    for error in errors.values():
        say(f"\n{error}")
    changed = sorted({row["node"] for row in rows if row["lock"] == "CHANGED"})
    if changed and not replace:
        raise OstrainError(
            f"the pinned keys of {', '.join(changed)} are not what is offered now", where=str(lock),
            why="these nodes were set up anew, or somebody stands in between",
            next_step="find out which; only if they were set up anew: say --replace",
            exit_code=ExitCode.UNREACHABLE,
        )  # fmt: skip
    fresh = [pin for one in offered.values() for pin in one.pins]
    pins = merged(old, {one.name for one in offered.values()}, fresh)
    pinned = pins != old and (yes or _agreed(len(offered), lock))
    if pinned:
        write_lock(lock, pins)
        say(f"pinned {len(fresh)} keys of {len(offered)} nodes in {lock}")
    elif pins == old:
        say(f"{lock} holds these keys already")
    if as_json:
        emit_json({"lock": str(lock), "pinned": pinned, "keys": rows})
    if errors:
        return int(ExitCode.UNREACHABLE)
    return int(ExitCode.OK if pinned or pins == old else ExitCode.RUN_FAILED)


@hosts.command("list")
@click.argument("cluster")
@json_option
def list_command(cluster: str, as_json: bool) -> int:
    """Show which host keys of CLUSTER's nodes are pinned. No node is asked."""
    from cluster.host_keys import known_as
    from cluster.hosts_lock import read_lock

    accesses, lock = _nodes_of(cluster, ())
    pins = read_lock(lock)
    rows: list[dict[str, Any]] = []
    for node, access in accesses.items():
        own = [pin for pin in pins if pin.host == known_as(access)]
        rows += [_row(node, pin) for pin in own] or [
            {"node": node, "host": known_as(access), "type": "", "fingerprint": ""}
        ]
    if as_json:
        emit_json({"lock": str(lock), "keys": rows})
    else:
        shown = [[row["node"], row["host"], row["type"] or "not pinned", row["fingerprint"]] for row in rows]
        click.echo(table(shown, ("NODE", "HOST", "TYPE", "FINGERPRINT")))
    missing = [row["node"] for row in rows if not row["type"]]
    if missing:
        say(
            f"{len(missing)} of {len(accesses)} nodes are not pinned, known_hosts decides there; to pin them: "
            f"ostrain hosts trust {cluster}"
        )
    return int(ExitCode.OK)


def _nodes_of(cluster: str, wanted: tuple[str, ...]) -> tuple[dict[str, NodeAccess], Path]:
    """How to reach the nodes, and where their keys are pinned. OstrainError (exit 2)."""
    from cluster.hosts_lock import lock_beside
    from ostrain.ranktable.nodes import load_inventory
    from ostrain.spec.problems import did_you_mean

    inventory = load_inventory(cluster)
    nodes = {node.name: node for node in inventory.resolved()} if inventory.backend == "ssh" else {}
    lock = lock_beside(next((node.inventory for node in nodes.values()), ""))
    if lock is None:
        raise OstrainError(
            f"{inventory.name} has no nodes that are reached over SSH", next_step="name an inventory with backend ssh",
            exit_code=ExitCode.USAGE,
        )  # fmt: skip
    for name in wanted:
        if name not in nodes:
            raise OstrainError(
                f"{inventory.name} has no node {name!r}{did_you_mean(name, list(nodes))}",
                next_step=f"its nodes: {', '.join(list(nodes)[:12])}",
                exit_code=ExitCode.USAGE,
            )
    chosen = [node for name, node in nodes.items() if not wanted or name in wanted]
    return {
        node.name: NodeAccess(node.host, node.user, node.port, node.identity_file, inventory=node.inventory)
        for node in chosen
    }, lock


def _row(node: str, pin: Pin) -> dict[str, Any]:
    return {"node": node, "host": pin.host, "type": pin.kind, "fingerprint": pin.fingerprint}


def _rows(node: str, offered: Offered, old: list[Pin]) -> list[dict[str, Any]]:
    """A row a key, with what known_hosts and the lock say of it: same, CHANGED, or nothing."""
    rows = []
    theirs = [pin for pin in old if pin.host == offered.name]
    for pin in offered.pins:
        same = any(pin.kind == one.kind and pin.key == one.key for one in theirs)
        clash = any(pin.kind == one.kind for one in theirs)
        known = "same" if offered.known[pin.kind] else "OTHER KEY" if pin.kind in offered.other else ""
        rows.append(
            {**_row(node, pin), "known_hosts": known, "lock": "same" if same else "CHANGED" if clash else "new"}
        )
    gone = {pin.kind for pin in theirs} - {pin.kind for pin in offered.pins}
    rows += [
        {**_row(node, pin), "known_hosts": "", "lock": "CHANGED" if len(gone) == len(theirs) else "not offered"}
        for pin in theirs
        if pin.kind in gone
    ]
    return rows


def _shown(row: dict[str, Any]) -> list[str]:
    keys = ("node", "host", "type", "fingerprint", "known_hosts", "lock")
    return [str(row[key]) or "-" for key in keys]


def _agreed(count: int, lock: Path) -> bool:
    if not sys.stdin.isatty():
        raise OstrainError(
            "nobody is there to confirm the keys", next_step="compare the fingerprints, then say --yes",
            exit_code=ExitCode.USAGE,
        )  # fmt: skip
    return click.confirm(f"pin these keys of {count} nodes in {lock}?", err=True)
