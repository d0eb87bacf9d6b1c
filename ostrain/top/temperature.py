"""Temperatures of devices, asked rarely and beside everything else: npu-smi may take seconds."""

from __future__ import annotations

import re
from typing import Any

from cluster.backend import Backend, NodeError
from cluster.inspection import Inspects
from ostrain.plan import LaunchPlan

EVERY = 30.0  # seconds between two looks
# A chip's first row of `npu-smi info`: | 0     910B3 | OK | 101.8       43    0    / 0 |
_ROW = re.compile(r"^\|\s*(\d+)\s+\S+\s*\|\s*\w+\s*\|\s*[\d.-]+\s+(\d+)\s", re.MULTILINE)


def parse(text: str) -> dict[int, int]:
    """NPU -> degrees Celsius, of the output of ``npu-smi info`` (the hottest of a card's chips)."""
    found: dict[int, int] = {}
    for npu, degrees in _ROW.findall(text):
        found[int(npu)] = max(int(degrees), found.get(int(npu), 0))
    return found


def temperatures(backend: Backend, plan: LaunchPlan) -> dict[str, dict[int, int]]:
    """Node -> device -> degrees; {} on CPUs. Nodes that do not say are left out."""
    if plan.device != "Ascend" or not isinstance(backend, Inspects):
        return {}
    requests: dict[str, dict[str, Any]] = {
        node.name: {"devices": {"devices": list(node.devices)}} for node in plan.nodes
    }
    found = {}
    for name, answer in backend.inspect(plan, requests, timeout=20.0).items():
        if not isinstance(answer, NodeError):
            info = (answer.parts.get("devices") or {}).get("info") or {}
            found[name] = parse(str(info.get("out", "")))
    return {name: one for name, one in found.items() if one}
