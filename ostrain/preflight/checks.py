"""The table of checks, in the order people read them. docs/preflight.md explains each line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ostrain.preflight import connection, devices, network, sameness, software, storage, versions
from ostrain.preflight.situation import Situation
from ostrain.preflight.verdict import Verdict


@dataclass(frozen=True)
class Check:
    """One line. parts: what it reads of the inspector's answer; ascend, several: only looked at there."""

    name: str
    function: Callable[[Situation], Iterator[Verdict]]
    meaning: str
    parts: tuple[str, ...] = ()
    ascend: bool = False
    several: bool = False

    def applies(self, situation: Situation) -> bool:
        return (situation.ascend or not self.ascend) and (situation.wishes.several or not self.several)


CHECKS: tuple[Check, ...] = (
    Check("reach", connection.reach, "the node answers"),
    Check("host_key", connection.host_key, "its host key is the pinned or known one"),
    Check("user", connection.user, "the user may log in, with one id everywhere", ("identity",)),
    Check("clock", connection.clock, "clocks are together", several=True),
    Check("setup", software.setup, "set-up scripts and environment work", ("software",)),
    Check("python", software.python, "Python is right and the same", ("software",)),
    Check("mindspore", software.mindspore, "MindSpore is there and the same", ("software",)),
    Check("modules", software.modules, "the payload's modules are there", ("software",)),
    Check("programs", software.programs, "launcher and shell are there", ("software",)),
    Check("driver", versions.driver, "the NPU driver is the same", ("software",), ascend=True),
    Check("firmware", versions.firmware, "the NPU firmware is the same", ("software",), ascend=True),
    Check("cann", versions.cann, "CANN is there and the same", ("software",), ascend=True),
    Check("compatible", versions.compatible, "those versions go together", ("software",), ascend=True),
    Check("devices", devices.devices, "the job's devices are there and open to the user", ("devices",), ascend=True),
    Check("health", devices.health, "the devices are healthy", ("devices",), ascend=True),
    Check("busy", devices.busy, "nobody computes on the devices", ("devices", "processes"), ascend=True),
    Check("holders", devices.holders, "nobody holds a device open", ("devices", "processes"), ascend=True),
    Check("leftovers", devices.leftovers, "no process of a run that is over", ("processes",)),
    Check("link", network.link, "the devices' network links are up", ("devices",), ascend=True, several=True),
    Check("tls", network.tls, "TLS is on or off everywhere alike", ("devices",), ascend=True, several=True),
    Check("address", network.address, "the node has the address the others reach it at", ("network",), several=True),
    Check("route", network.route, "it reaches the first node", ("network",), several=True),
    Check("ports", network.ports, "the scheduler's and HCCL's ports are free", ("network",)),
    Check("space", storage.space, "checkpoints fit", ("disk",)),
    Check("speed", storage.speed, "checkpoints are written in time", ("speed",)),
    Check("files", sameness.files, "files the job names are there and the same", ("files",)),
    Check("code", sameness.code, "pushed code and files were not changed", ("code",)),
    Check("environment", sameness.environment, "collectives see one environment", ("software",), several=True),
)
