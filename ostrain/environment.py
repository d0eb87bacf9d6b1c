"""Values and names of environment variables as jobs and inventories write them."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
SECRET_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")

# bash sets these itself or gives them a meaning of its own: a value would not arrive as written, or break launch.sh.
_BASH_OWNED = frozenset(
    [
        "BASH",
        "BASHOPTS",
        "BASHPID",
        "BASH_ALIASES",
        "BASH_ARGC",
        "BASH_ARGV",
        "BASH_ARGV0",
        "BASH_CMDS",
        "BASH_COMMAND",
        "BASH_ENV",
        "BASH_EXECUTION_STRING",
        "BASH_LINENO",
        "BASH_LOADABLES_PATH",
        "BASH_SOURCE",
        "BASH_SUBSHELL",
        "BASH_VERSINFO",
        "BASH_VERSION",
        "BASH_XTRACEFD",
        "COMP_WORDBREAKS",
        "DIRSTACK",
        "ENV",
        "EPOCHREALTIME",
        "EPOCHSECONDS",
        "EUID",
        "FUNCNAME",
        "GROUPS",
        "HISTCMD",
        "IFS",
        "LINENO",
        "OLDPWD",
        "OPTERR",
        "OPTIND",
        "PIPESTATUS",
        "POSIXLY_CORRECT",
        "PPID",
        "PWD",
        "RANDOM",
        "SECONDS",
        "SHELLOPTS",
        "SHLVL",
        "SRANDOM",
        "UID",
        "_",
    ]
)
_LAUNCHER_OWNED = {
    "ASCEND_DEVICE_ID": "the launcher numbers the devices",
    "ASCEND_RT_VISIBLE_DEVICES": "the node's `devices` in the inventory say which devices a job may use",
    "DEVICE_ID": "the launcher numbers the devices",
    "MINDSPORE_HCCL_CONFIG_PATH": "say `launcher: rank_table`, and `rank_table` where the table is a file",
    "MS_NODE_ID": "it gives every worker its own",
    "MS_ROLE": "it gives every process its own",
    "MS_SCHED_HOST": "the launcher derives it from the first node's address",
    "MS_SCHED_PORT": "say `master_port` in the job",
    "MS_SIMULATION_LEVEL": "it turns training into a dry run",
    "MS_TOPO_TIMEOUT": "it waits longer for more ranks",
    "MS_WORKER_IP": "say `address` and `interface` in the inventory",
    "MS_WORKER_NUM": "it follows from nodes x devices_per_node",
    "RANK_TABLE_FILE": "say `launcher: rank_table`, and `rank_table` where the table is a file",
}
_LAUNCHER_PREFIXES = ("OSTRAIN_", "RANK_", "OMPI_COMM_WORLD_", "PMIX_")


def name_problem(name: str) -> str:
    """Why ``name`` cannot be set in a job or inventory; empty when it can."""
    if not NAME.match(name):
        return "letters, digits and _ make a variable's name, and it starts with no digit"
    if name in _BASH_OWNED:
        return f"the shell that starts the workers sets {name} itself; the value would not arrive"
    if name in _LAUNCHER_OWNED:
        return f"{name} belongs to the launcher: {_LAUNCHER_OWNED[name]}"
    for prefix in _LAUNCHER_PREFIXES:
        if name.startswith(prefix):
            return f"names starting with {prefix} belong to the launcher"
    return ""


def no_nul(value: str) -> str:
    """Strings that reach a shell, an environment or a path cannot hold a NUL."""
    if "\0" in value:
        raise ValueError("holds a NUL character, which no environment, path or command line can carry")
    return value


def _encodable(value: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which is not text") from None
    return no_nul(value)


Text = Annotated[str, AfterValidator(_encodable)]


def _single_line(value: str) -> str:
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
        raise ValueError("holds a control character (a line break, a tab…)")
    return value


Line = Annotated[Text, AfterValidator(_single_line)]


class Part(BaseModel):
    """Base of everything a job or inventory says: unknown keys are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Expand(Part):
    """A value in which ``$NAME`` and ``${NAME}`` are replaced on the node; everything else stays literal."""

    expand: Text = Field(description="text in which $NAME and ${NAME} are replaced on the node, nothing else")


def _secret_name(value: str) -> str:
    if not SECRET_NAME.match(value):
        raise ValueError("letters, digits, _ . - make a secret's name")
    return value


class Secret(Part):
    """A value that only its name appears of: never rendered, logged or stored."""

    secret: Annotated[str, AfterValidator(_secret_name)] = Field(description="name of the secret")


def _kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "<literal>"
    for kind, model in (("expand", Expand), ("secret", Secret)):
        if isinstance(value, model) or (isinstance(value, dict) and kind in value):
            return f"<{kind}>"
    return None


ENV_VALUE_HELP = 'write a quoted string, {expand: "$NAME/…"} or {secret: name}'
EnvValue = Annotated[
    Annotated[Text, Tag("<literal>")] | Annotated[Expand, Tag("<expand>")] | Annotated[Secret, Tag("<secret>")],
    Discriminator(_kind, custom_error_type="environment_value", custom_error_message=ENV_VALUE_HELP),
]


def _env_name(name: str) -> str:
    problem = name_problem(name)
    if problem:
        raise ValueError(problem)
    return name


EnvName = Annotated[str, AfterValidator(_env_name)]
Env = dict[EnvName, EnvValue]
