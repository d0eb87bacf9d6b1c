"""Lists of devices as people write them: ``0-7``, ``0,1,4,5``, and hccl_tools.py's ``[0,8)``."""

from __future__ import annotations

import re

from ostrain.errors import OstrainError
from ostrain.states import ExitCode

MAX_DEVICE = 1023
_HALF_OPEN = re.compile(r"\[\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\)\Z", re.ASCII)
_RANGE = re.compile(r"(\d{1,4})\s*-\s*(\d{1,4})\Z", re.ASCII)


def device_list(text: str) -> tuple[int, ...]:
    """The ids, in the order written. OstrainError (exit 2) for anything else."""
    word = text.strip()
    if match := _HALF_OPEN.match(word):
        ids = list(range(int(match[1]), int(match[2])))
    else:
        ids = []
        for part in word.split(","):
            if match := _RANGE.match(part.strip()):
                ids += range(int(match[1]), int(match[2]) + 1)
            elif re.fullmatch(r"\d{1,4}", part.strip(), re.ASCII):
                ids.append(int(part))
            else:
                raise _wrong(text, f"{part.strip()!r} is no device")
    if not ids:
        raise _wrong(text, "it names no device")
    if len(set(ids)) != len(ids):
        raise _wrong(text, "a device stands twice")
    if max(ids) > MAX_DEVICE:
        raise _wrong(text, f"there is no device {max(ids)}")
    return tuple(ids)


def _wrong(text: str, why: str) -> OstrainError:
    return OstrainError(
        f"{text!r} is no list of devices", why=why, next_step="write 0-7, 0,1,4,5 or [0,8)", exit_code=ExitCode.USAGE
    )


def chosen_devices(devices: str | None, visible: str | None) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """Logical and physical ids; None where nothing is said. visible: the physical id of each logical one."""
    logical = device_list(devices) if devices is not None else None
    if visible is None:
        return logical, logical
    physical = device_list(visible)
    if logical is None:
        logical = tuple(range(len(physical)))
    if max(logical) >= len(physical):
        raise OstrainError(
            f"device {max(logical)} is not one of the {len(physical)} visible devices",
            why="--devices are places in --visible-devices, from 0",
            next_step=f"--devices 0-{len(physical) - 1}",
            exit_code=ExitCode.USAGE,
        )
    return logical, tuple(physical[place] for place in logical)
