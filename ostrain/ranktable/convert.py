"""A table in another version, and tables mended that only wrote numbers without quotes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from ostrain.errors import OstrainError
from ostrain.ranktable.facts import NodeFacts
from ostrain.ranktable.findings import Findings, quoted
from ostrain.ranktable.groups import check_groups, instance_order
from ostrain.ranktable.walk import Walk
from ostrain.states import ExitCode

_TOP = ("server_count", "group_count", "version")
_DEVICE = (
    "device_id", "device_port", "rank_id", "super_device_id", "backup_device_port", "host_port",
)  # fmt: skip
_ONLY_12 = ("super_device_id", "backup_device_ip", "backup_device_port")


def stringified(data: Any) -> Any:
    """A copy in which the numbers of a 1.x or group table are strings, as HCCL wants them. Other data as it is."""
    if not isinstance(data, dict) or "rank_list" in data:
        return data
    copied = copy.deepcopy(data)
    _strings(copied, _TOP)
    for server in _dicts(copied.get("server_list")):
        for device in _dicts(server.get("device")):
            _strings(device, _DEVICE)
    for pod in _dicts(copied.get("super_pod_list")):
        _strings(pod, ("super_pod_id",))
    for group in _dicts(copied.get("group_list")):
        _strings(group, ("device_count", "instance_count"))
        for instance in _dicts(group.get("instance_list")):
            for device in _dicts(instance.get("devices")):
                _strings(device, _DEVICE)
    return copied


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _strings(holder: dict[str, Any], keys: Sequence[str]) -> None:
    for key in keys:
        value = holder.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            holder[key] = str(value)


def convert(data: dict[str, Any], to: str, nodes: Sequence[NodeFacts] = ()) -> dict[str, Any]:
    """``data``, a table without errors, in version ``to``. nodes: facts that version 1.2 needs of a 1.0 table.

    Raises OstrainError (exit 2) where the other version needs what this one does not hold.
    """
    version = data.get("version", "group")
    if version == to:
        return data
    if "2.0" in (version, to):
        raise _refused(
            f"a table of version {version} cannot become one of {to}" if version != "group" else "not to 2.0",
            "2.0 describes the 950's own network, layer by layer, which no other server has",
            "make it from the 950 nodes: `ostrain ranktable make --version 2.0`",
        )
    if version == "group":
        data = from_groups(data)
        return data if to == "1.0" else convert(data, to, nodes)
    return _to_10(data) if to == "1.0" else _to_12(data, nodes)


def _refused(what: str, why: str, next_step: str) -> OstrainError:
    return OstrainError(what, why=why, next_step=next_step, exit_code=ExitCode.USAGE)


def from_groups(data: dict[str, Any]) -> dict[str, Any]:
    """The old ModelArts format as 1.0, as the platform's start code does it: instances by the number at the end of
    their names, ranks over their devices, servers together."""
    servers: dict[str, list[dict[str, str]]] = {}
    rank = 0
    for instance in instance_order(check_groups(Walk(Findings()), data)):
        devices = servers.setdefault(instance.server_id, [])
        for device in instance.devices:
            ip = {"device_ip": device["device_ip"]} if device.get("device_ip") else {}
            devices.append({"device_id": device["device_id"], **ip, "rank_id": str(rank)})
            rank += 1
    listed = [{"server_id": server, "device": devices} for server, devices in servers.items()]
    return {
        "status": data.get("status", "completed"),
        "version": "1.0",
        "server_count": str(len(listed)),
        "server_list": listed,
    }


def _to_10(data: dict[str, Any]) -> dict[str, Any]:
    servers = copy.deepcopy(data["server_list"])
    for server in servers:
        for device in server["device"]:
            for key in _ONLY_12:
                device.pop(key, None)
    rest = {k: v for k, v in data.items() if k not in ("version", "server_count", "server_list", "status")}
    rest.pop("super_pod_list", None)
    return {"version": "1.0", "server_count": str(len(servers)), "server_list": servers, **rest, "status": "completed"}


def _to_12(data: dict[str, Any], nodes: Sequence[NodeFacts]) -> dict[str, Any]:
    by_name = by_words(nodes)
    servers = []
    pods: dict[str, dict[str, None]] = {}
    for server in data["server_list"]:
        facts = by_name.get(server["server_id"]) or by_name.get(server.get("host_ip", ""))
        devices = []
        for device in server["device"]:
            place = facts.devices.get(int(device["device_id"])) if facts else None
            if place is None or place.pod is None:
                owner = f"device {device['device_id']} of server {quoted(server['server_id'])}"
                raise _refused(
                    f"the super_device_id of {owner} is not known",
                    "version 1.2 needs it, version 1.0 has none",
                    "say where the nodes' facts are: --cluster NAME or --facts FOLDER",
                )
            pods.setdefault(place.pod.super_pod_id, {})[server["server_id"]] = None
            head = {"device_id": device["device_id"], "super_device_id": str(place.pod.super_device_id)}
            devices.append({**head, **{key: value for key, value in device.items() if key not in head}})
        rest = {key: value for key, value in server.items() if key not in ("server_id", "device", "host_nic_ip")}
        servers.append({"server_id": server["server_id"], **rest, "device": devices})
    listing = [
        {"super_pod_id": pod, "server_list": [{"server_id": server} for server in members]}
        for pod, members in pods.items()
    ]
    return {
        "version": "1.2",
        "status": "completed",
        "server_count": str(len(servers)),
        "server_list": servers,
        "super_pod_list": listing,
    }


def by_words(nodes: Sequence[NodeFacts]) -> dict[str, NodeFacts]:
    """Nodes by everything a table may call them: server_id, name, address. The first of two wins."""
    found: dict[str, NodeFacts] = {}
    for facts in nodes:
        for word in (facts.server_id, facts.name, str(facts.host_ip or "")):
            if word:
                found.setdefault(word, facts)
    return found
