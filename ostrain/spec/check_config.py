"""``check:`` of a job: what is looked at on the nodes before a start (``ostrain.preflight``)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from models.units import Duration
from ostrain.environment import Part

# The lines of docs/preflight.md; a test keeps them equal to ostrain.preflight.checks.CHECKS.
CheckName = Literal[
    "reach", "host_key", "user", "clock", "setup", "python", "mindspore", "modules", "programs", "driver", "firmware",
    "cann", "compatible", "devices", "health", "busy", "holders", "leftovers", "link", "tls", "address", "route",
    "ports", "space", "speed", "files", "code", "environment",
]  # fmt: skip


class CheckConfig(Part):
    """How nodes are checked before a start."""

    canary: bool = Field(False, description="before every submit, too, run one collective over all ranks")
    canary_timeout: Annotated[Duration, Field(gt=0)] = Field(
        300.0, description="the longest the canary may take to start MindSpore everywhere and meet"
    )
    clock_skew: Annotated[Duration, Field(gt=0)] = Field(5.0, description="how far apart the nodes' clocks may be")
    checkpoint_time: Annotated[Duration, Field(gt=0)] = Field(
        600.0, description="the longest a node may take to write its part of a checkpoint"
    )
    expire: Annotated[Duration, Field(ge=0)] = Field(
        600.0, description="how long a pass of what seldom changes (versions, disk speed, files) is remembered"
    )
    skip: list[CheckName] = Field(default_factory=list, description="lines that are not looked at")
