"""Checks of the old ModelArts format ("template 2"): groups of instances, no version, no ranks."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ostrain.ranktable.findings import quoted
from ostrain.ranktable.locate import Path
from ostrain.ranktable.servers import read_ips
from ostrain.ranktable.walk import Object, Walk

_ORDER = re.compile(r"-([0-9]{1,9})\Z")


@dataclass
class Instance:
    """A pod. ``order``: the number its name ends in."""

    path: Path
    data: Object
    order: int
    server_id: str
    devices: list[Object]


def check_groups(walk: Walk, data: Object) -> list[Instance]:
    """Every instance, as far as it can be read."""
    walk.count(data, (), "group_count", "group_list", rule="group_count")
    found = []
    for path, group in walk.entries(data, (), "group_list"):
        walk.text(group, path, "group_name", needed=False)
        walk.count(group, path, "instance_count", "instance_list", rule="group_count", needed=False)
        instances = [_instance(walk, *entry) for entry in walk.entries(group, path, "instance_list")]
        devices = sum(len(instance.devices) for instance in instances)
        declared = walk.number(group, path, "device_count", needed=False)
        if declared is not None and declared != devices:
            text = f'device_count is "{declared}", but the instances have {devices} devices'
            walk.findings.add("group_count", (*path, "device_count"), text)
        found += instances
    _unique(walk, found)
    return found


def _instance(walk: Walk, path: Path, data: Object) -> Instance:
    pod = walk.name(data, path, "pod_name", 1024, "length")
    match = _ORDER.search(pod or "")
    if pod is not None and match is None:
        walk.findings.add("pod_name", (*path, "pod_name"), f"pod_name {quoted(pod)} does not end in - and a number")
    server = walk.name(data, path, "server_id", 64, "server_id")
    devices = []
    for where, device in walk.entries(data, path, "devices"):
        walk.number(device, where, "device_id", rule="device_id")
        read_ips(walk, device, where, "device_ip")
        devices.append(device)
    return Instance(path, data, int(match[1]) if match else 0, server or "?", devices)


def _unique(walk: Walk, instances: list[Instance]) -> None:
    """Pods, and devices of a server, are listed once."""
    pods: set[object] = set()
    devices: dict[tuple[str, str], str] = {}
    addresses: dict[str, str] = {}
    for instance in instances:
        pod = instance.data.get("pod_name")
        if isinstance(pod, str) and pod in pods:
            walk.findings.add("pod_name", (*instance.path, "pod_name"), f"pod_name {quoted(pod)} is listed twice")
        pods.add(pod if isinstance(pod, str) else None)
        for number, device in enumerate(instance.devices):
            where = (*instance.path, "devices", number)
            key, ip = device.get("device_id"), device.get("device_ip")
            owner = f"device {quoted(key)} of {quoted(instance.server_id)}"
            if isinstance(key, str) and devices.setdefault((instance.server_id, key), str(where)) != str(where):
                walk.findings.add("duplicate_device", (*where, "device_id"), f"{owner} is listed twice")
            if isinstance(ip, str) and ip and addresses.setdefault(ip, owner) != owner:
                text = f"device_ip {quoted(ip)} is that of {addresses[ip]}, too"
                walk.findings.add("duplicate_ip", (*where, "device_ip"), text)


def instance_order(instances: list[Instance]) -> list[Instance]:
    """As the platform's start code sorts them: by the number a pod's name ends in."""
    return sorted(instances, key=lambda instance: instance.order)
