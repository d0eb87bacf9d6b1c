"""Secrets: found on the submitting machine, carried on an agent's standard input, kept nowhere else."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from ostrain.errors import OstrainError
from ostrain.paths import config_dir


def variable_of(name: str) -> str:
    """The client's environment variable of a secret: ``hf_token`` -> ``OSTRAIN_SECRET_HF_TOKEN``."""
    return "OSTRAIN_SECRET_" + re.sub(r"[^A-Za-z0-9]", "_", name).upper()


def resolve_secrets(wanted: Mapping[str, str]) -> dict[str, str]:
    """Values for ``{environment variable: secret name}``; OstrainError naming every one that cannot be had."""
    values: dict[str, str] = {}
    problems: list[OstrainError] = []
    for variable, name in wanted.items():
        try:
            values[variable] = read_secret(name)
        except OstrainError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise OstrainError(
            "; ".join(error.what for error in problems),
            why="; ".join(error.why for error in problems),
            next_step="; ".join(error.next_step for error in problems),
            exit_code=2,
        )
    return values


def read_secret(name: str) -> str:
    """From the environment, else from a file only its owner can read. One line end at the file's end is dropped."""
    variable = variable_of(name)
    if variable in os.environ:
        return os.environ[variable]
    path = config_dir() / "secrets" / name
    if not name or Path(name).name != name or name.startswith("."):
        raise OstrainError(f"{name!r} is no name for a secret", next_step="use letters, digits and _", exit_code=2)
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise OstrainError(
            f"no secret {name}",
            why=f"neither {variable} is set nor does {path} exist",
            next_step=f"export {variable}=…, or write {path} with mode 0600",
            exit_code=2,
        ) from None
    except OSError as error:
        raise OstrainError(f"the secret {name} cannot be read", why=str(error), exit_code=2) from error
    with os.fdopen(handle, encoding="utf-8", errors="surrogateescape") as file:
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        if mode & 0o077:
            raise OstrainError(
                f"the secret {name} is readable by others",
                where=str(path),
                why=f"its mode is {mode:04o}",
                next_step=f"chmod 600 {path}",
                exit_code=2,
            )
        return file.read().removesuffix("\n")
