"""Looking at nodes before a start: sends the inspector, asks it, measures the node's clock on the way."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cluster.backend import PerNode
from cluster.client import AgentClient
from ostrain.plan import LaunchPlan

INSPECTOR = Path(__file__).with_name("inspector.py")


@dataclass(frozen=True)
class Inspection:
    """What one node said.

    parts: name -> facts (``cluster/inspector.py``). offset: seconds its clock is ahead of this machine's, off by at
    most ``error``. seconds: how long the question took. host_key: type, fingerprint and the place that vouches for it;
    None where there is no connection.
    """

    parts: dict[str, Any]
    offset: float
    error: float
    seconds: float
    host_key: dict[str, str] | None


@runtime_checkable
class Inspects(Protocol):
    """A backend that knows its nodes before a start and can look at them."""

    def inspect(
        self, plan: LaunchPlan, requests: Mapping[str, dict[str, Any]], *, timeout: float = 60.0
    ) -> PerNode[Inspection]:
        """Ask the inspector of every node in ``requests`` (node -> request), all at once."""
        ...


def inspect_node(client: AgentClient, request: dict[str, Any], timeout: float) -> Inspection:
    """Ask one node's inspector. NodeError as for any verb of the agent."""
    began = time.monotonic()
    inspector = client.beside(INSPECTOR)
    inspector.root(timeout)  # connecting and sending the file must not count as the message's way
    sent = time.time()
    answer = inspector.call("inspect", input=request, timeout=timeout)
    back = time.time()
    # As in NTP: the message's way there and back take half of what the node did not need itself.
    offset = ((answer["received"] - sent) + (answer["answered"] - back)) / 2
    way = max(0.0, (back - sent) - (answer["answered"] - answer["received"]))
    told = getattr(client.transport, "host_key", None)
    key = told() if callable(told) else None
    return Inspection(dict(answer["parts"]), offset, way / 2, time.monotonic() - began, key)
