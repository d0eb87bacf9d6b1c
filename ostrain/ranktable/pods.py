"""Checks of super pods (version 1.2, Atlas 900 A3)."""

from __future__ import annotations

from collections.abc import Iterator

from ostrain.ranktable.findings import quoted
from ostrain.ranktable.locate import Path
from ostrain.ranktable.servers import Server, named
from ostrain.ranktable.walk import Object, Walk


def check_pods(walk: Walk, data: Object, servers: list[Server]) -> dict[str, str]:
    """server_id -> super_pod_id, as far as it can be read."""
    _super_device_ids(walk, servers, needed="super_pod_list" in data)
    if "super_pod_list" not in data:
        walk.findings.add("no_super_pods", (), "there is no super_pod_list")
        return {}
    known = {server.server_id for server in servers}
    pods: dict[str, str] = {}
    first: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for number, (path, entry) in enumerate(walk.entries(data, (), "super_pod_list")):
        pod = walk.name(entry, path, "super_pod_id", 64, "super_pod_id")
        if pod is not None and first.setdefault(pod, number) != number:
            text = f"super pod {quoted(pod)} is entry {first[pod] + 1} of super_pod_list, too"
            walk.findings.add("duplicate_super_pod", (*path, "super_pod_id"), text)
        members = list(_members(walk, entry, path, known, pods))
        for server_id in members:
            pods[server_id] = pod if pod is not None else "?"
        sizes[pod or "?"] = len(members)
    _complete(walk, servers, pods, sizes)
    _unique_super_devices(walk, servers, pods)
    return pods


def _members(walk: Walk, entry: Object, path: Path, known: set[str | None], pods: dict[str, str]) -> Iterator[str]:
    """The servers of a super pod that exist and are in no other one."""
    seen: set[str] = set()
    for where, server in walk.entries(entry, path, "server_list"):
        name = walk.text(server, where, "server_id")
        if name is None:
            continue
        if name not in known:
            text = f"server {quoted(name)} is not in server_list"
            walk.findings.add("super_pod_server", (*where, "server_id"), text)
        elif name in pods or name in seen:
            text = f"server {quoted(name)} is in super pod {quoted(pods.get(name, entry.get('super_pod_id')))} already"
            walk.findings.add("super_pod_server", (*where, "server_id"), text)
        else:
            seen.add(name)
            yield name


def _complete(walk: Walk, servers: list[Server], pods: dict[str, str], sizes: dict[str, int]) -> None:
    """Every server is in one, those of one follow each other, all are of a size."""
    ended: set[str] = set()
    current: str | None = None
    for server in servers:
        pod = pods.get(server.server_id or "")
        if pod is None:
            if server.server_id is not None:
                walk.findings.add("super_pod_total", server.path, f"server {server.name} is in no super pod")
            continue
        if pod != current:
            if pod in ended:
                text = f"server {server.name} of super pod {quoted(pod)} is listed after servers of another one"
                walk.findings.add("super_pod_order", (*server.path, "server_id"), text)
            ended.add(current or "")
            current = pod
    if len(set(sizes.values())) > 1:
        text = "super pods have " + ", ".join(f"{count} ({quoted(pod)})" for pod, count in list(sizes.items())[:4])
        walk.findings.add("super_pod_unequal", ("super_pod_list",), f"{text} servers", on_key=True)


def _super_device_ids(walk: Walk, servers: list[Server], *, needed: bool) -> None:
    for server in servers:
        for device in server.devices:
            if "super_device_id" in device.data:
                device.super_device_id = walk.number(
                    device.data, device.path, "super_device_id", rule="super_device_id"
                )
            elif needed:
                text = f"{named(servers, device)} has no super_device_id"
                walk.findings.add("super_device_id", device.path, text)


def _unique_super_devices(walk: Walk, servers: list[Server], pods: dict[str, str]) -> None:
    owners: dict[tuple[str, int], str] = {}
    for server in servers:
        pod = pods.get(server.server_id or "")
        for device in server.devices:
            if pod is None or device.super_device_id is None:
                continue
            owner = owners.setdefault((pod, device.super_device_id), named(servers, device))
            if owner != named(servers, device):
                text = f"super_device_id {device.super_device_id} is that of {owner}, too"
                walk.findings.add("duplicate_super_device", (*device.path, "super_device_id"), text)
