"""The section ``slurm:`` of an inventory: what to ask Slurm for, and where its commands and the shared root are.

Every value stands in a line ``#SBATCH --option=value``, whose words sbatch splits by rules of its own: values are
limited to letters that mean nothing to it, so that nothing needs quoting there.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from models.units import Duration
from ostrain.environment import Line, Part

# Options of sbatch a site may need that ostrain has no key for; True: it takes a value.
EXTRA_OPTIONS: dict[str, bool] = {
    "acctg-freq": True, "batch": True, "bb": True, "begin": True, "cluster-constraint": True, "clusters": True,
    "comment": True, "container": True, "contiguous": False, "core-spec": True, "cores-per-socket": True,
    "cpu-freq": True, "deadline": True, "delay-boot": True, "exclude": True, "extra-node-info": True, "hint": True,
    "licenses": True, "mcs-label": True, "mem": True, "mem-bind": True, "mem-per-cpu": True, "mincpus": True,
    "network": True, "nice": True, "nodefile": True, "nodelist": True, "power": True, "prefer": True,
    "priority": True, "profile": True, "reboot": False, "sockets-per-node": True, "spread-job": False,
    "switches": True, "thread-spec": True, "threads-per-core": True, "tmp": True, "use-min-nodes": False,
    "wait-all-nodes": True, "wckey": True,
}  # fmt: skip
# Options that ostrain sets itself, and what to say in their place.
OWNED_OPTIONS: dict[str, str] = {
    "account": "say `account`", "array": "ostrain submits one job an attempt; say `chain`",
    "chdir": "the run directory is the working directory", "constraint": "say `constraint`",
    "cpus-per-task": "say `cpus`", "dependency": "ostrain chains attempts itself", "error": "logs lie in the run "
    "directory", "exclusive": "say `exclusive`", "export": "the environment belongs into `env`", "gpus":
    "say `gres`", "gres": "say `gres`", "job-name": "the run's id is the job's name", "mail-type": "ostrain asks for "
    "no mail", "nodes": "the job's `nodes` say it", "no-requeue": "say `requeue`", "ntasks": "one agent a node",
    "ntasks-per-node": "one agent a node", "output": "logs lie in the run directory", "partition": "say `partition`",
    "qos": "say `qos`", "requeue": "say `requeue`", "reservation": "say `reservation`", "signal": "say `warning`",
    "time": "say `time`", "wrap": "ostrain writes the script",
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,:@+-]{0,199}\Z")
_VALUE = re.compile(r"[A-Za-z0-9_.,:;@%+=/()\[\]*&|!~^?<>-]{1,400}\Z")
_GRES = re.compile(r"[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+)?(:[1-9][0-9]{0,3})?\Z")


def _name(value: str) -> str:
    if not _NAME.match(value):
        raise ValueError(f"{value!r} is no name that Slurm knows (letters, digits and . , : @ + - _)")
    return value


def _value(value: str) -> str:
    if not _VALUE.match(value):
        raise ValueError(f"{value!r} holds a blank, a quote or another letter that sbatch would take apart")
    return value


def _gres(value: str) -> str:
    parts = [_one_gres(part) for part in value.split(",")]
    return ",".join(parts)


def _one_gres(value: str) -> str:
    if not _GRES.match(value):
        raise ValueError(f"{value!r} is no generic resource: write npu, npu:8 or npu:<type>:8")
    return value


def _path(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError(f"{value!r} has to be an absolute path")
    return value


def _options(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if name in OWNED_OPTIONS:
            raise ValueError(f"--{name} cannot stand here: {OWNED_OPTIONS[name]}")
        if name not in EXTRA_OPTIONS:
            known = ", ".join(sorted(EXTRA_OPTIONS))
            raise ValueError(f"--{name} is not an option that may stand here; these are: {known}")
        if EXTRA_OPTIONS[name] and not text:
            raise ValueError(f"--{name} needs a value")
        if not EXTRA_OPTIONS[name] and text not in ("", "true"):
            raise ValueError(f'--{name} takes no value; write "" or "true"')
        if text:
            _value(text)
    return value


def _login(value: str) -> str:
    if value.startswith("-") or not value:
        raise ValueError("is no name of a host")
    return value


def _program(value: str) -> str:
    if value.startswith("-") or not value or ("/" in value and not value.startswith("/")):
        raise ValueError(f"{value!r} has to be an absolute path on the nodes, or a name that is on PATH there")
    return value


Name = Annotated[Line, AfterValidator(_name)]
Value = Annotated[Line, AfterValidator(_value)]


class SlurmLogin(Part):
    """The machine that has sbatch, reached over SSH; keys as those of a node."""

    host: Annotated[Line, AfterValidator(_login)] = Field(description="name or address, or an alias of ~/.ssh/config")
    user: Annotated[Line, AfterValidator(_login)] | None = Field(None, description="user to log in as")
    port: Annotated[int, Field(ge=1, le=65535)] | None = Field(None, description="SSH port")
    identity_file: Annotated[Line, AfterValidator(_login)] | None = Field(None, description="private key here")


class SlurmSection(Part):
    """What Slurm is asked for. Nodes are not listed: how many is the job's ``nodes``, which is Slurm's choice."""

    login: SlurmLogin | None = Field(None, description="SSH host with sbatch; without it, this machine has it")
    partition: Name | None = Field(None, description="partition; default: the site's")
    account: Name | None = Field(None, description="account to charge")
    qos: Name | None = Field(None, description="quality of service")
    reservation: Name | None = Field(None, description="reservation to use")
    time: Duration | None = Field(None, description="time limit of an attempt, for example 2d; default: the site's")
    gres: Annotated[Line, AfterValidator(_gres)] | None = Field(
        None, description="generic resource a node: npu, npu:8, npu:<type>:8; without a number the job's devices"
    )
    cpus: Annotated[int, Field(ge=1, le=4096)] | None = Field(None, description="CPU cores a node")
    constraint: Value | None = Field(None, description="features the nodes need")
    exclusive: bool = Field(True, description="whole nodes: no other job beside this one")
    requeue: bool = Field(False, description="Slurm may put the job back into the queue: preemption, failed nodes")
    chain: bool = Field(
        True, description="restart.max further attempts wait in Slurm's queue, with no client alive; false: no restarts"
    )
    warning: Annotated[int, Field(ge=0, le=3600)] = Field(
        60, description="seconds before the time limit at which the workers are ended in good order; 0: never"
    )
    options: Annotated[dict[str, Line], AfterValidator(_options)] = Field(
        default_factory=dict, description="further options of sbatch: name without dashes -> value"
    )
    login_python: Annotated[Line, AfterValidator(_program)] | None = Field(
        None, description="Python 3.8 or newer on the login machine; default: that of the nodes"
    )
    programs: Annotated[Line, AfterValidator(_path)] | None = Field(
        None, description="folder of sbatch, squeue, scancel, scontrol and srun where they are not on PATH"
    )
    config: Annotated[Line, AfterValidator(_path)] | None = Field(
        None, description="slurm.conf, where it is not the site's default (SLURM_CONF)"
    )
