"""What people read: talk on standard error, data on standard output, tables, ages, and JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import click


def say(text: str) -> None:
    """One line of talk; never on standard output, which belongs to data."""
    click.echo(text, err=True)


def emit_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=2, sort_keys=True))


def table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
    from tabulate import tabulate

    return tabulate(rows, headers=headers, tablefmt="plain", disable_numparse=True)


def age(seconds: float) -> str:
    """``42s``, ``5m``, ``3h12m``, ``2d4h``."""
    total = int(max(0.0, seconds))
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m"
    if total < 86400:
        return f"{total // 3600}h{total % 3600 // 60:02d}m"
    return f"{total // 86400}d{total % 86400 // 3600}h"


def since(moment: float) -> str:
    return age(time.time() - moment)


def is_terminal() -> bool:
    return sys.stdout.isatty()


def next_commands(commands: Sequence[tuple[str, str]]) -> str:
    """Commands to try next, with what each is for."""
    width = max(len(command) for command, _ in commands)
    return "\n".join(f"  {command:<{width}}   {purpose}" for command, purpose in commands)
