"""A table as text and under what name: byte for byte what hccl_tools.py and merge_hccl.py write, where they apply."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any


def table_text(data: Any) -> str:
    """Four spaces a level, ASCII, no newline at the end."""
    return json.dumps(data, indent=4)


def file_name(data: dict[str, Any], ids: Sequence[int] | None = None) -> str:
    """``hccl_8p_01234567_10.0.0.1.json`` for one server, ``hccl_2s_16p.json`` for more.

    ids: what stands for the devices in the name; hccl_tools.py takes logical ids. Default: the table's.
    """
    if "rank_list" in data:
        return f"hccl_{len(data['rank_list'])}p.json"
    servers = data["server_list"]
    count = sum(len(server["device"]) for server in servers)
    if len(servers) != 1:
        return f"hccl_{len(servers)}s_{count}p.json"
    devices = servers[0]["device"]
    words = [str(number) for number in ids] if ids is not None else [device["device_id"] for device in devices]
    server = re.sub(r"[^\w.:-]", "_", servers[0]["server_id"])
    return f"hccl_{count}p_{''.join(words)}_{server}.json"


def listed(numbers: Iterable[int]) -> str:
    """``0-3, 6`` of ascending numbers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
