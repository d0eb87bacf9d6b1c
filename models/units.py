"""Human types for configuration files: durations (``30m``) and sizes (``55GB``)."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}


def parse_duration(value: Any) -> float:
    """Seconds of ``90``, ``90s``, ``30m``, ``1h30m``, ``2d``. ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("a duration such as 90s, 30m or 1h30m is needed")
    if not isinstance(value, str) or re.fullmatch(r"\d+(\.\d+)?", value.strip()):
        number = float(value)
    else:
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", value.strip())
        if not parts or "".join(a + b for a, b in parts) != re.sub(r"\s", "", value):
            raise ValueError(f"{value!r} is not a duration; write 90s, 30m, 1h30m or 2d")
        number = sum(float(amount) * _SECONDS[unit] for amount, unit in parts)
    if not 0 <= number < float("inf"):
        raise ValueError("a duration cannot be negative or infinite")
    return number


def parse_size(value: Any) -> int:
    """Bytes of ``55GB``, ``512 MB``, ``1.5TB`` or a plain number of bytes (1 GB = 2**30). ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("a size such as 55GB or 512MB is needed")
    if isinstance(value, int):
        number = value
    else:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])?i?(B)?)?", value.strip(), re.IGNORECASE)
        if not match:
            raise ValueError(f"{value!r} is not a size; write 55GB or 512MB")
        number = int(float(match[1]) * _BYTES[((match[2] or "") + "B").upper()])
    if number < 0:
        raise ValueError("a size cannot be negative")
    return number


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    WithJsonSchema({"type": ["string", "number"], "description": "90s, 30m, 1h30m or seconds", "examples": ["30m"]}),
]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(lambda n: n),
    WithJsonSchema({"type": ["string", "integer"], "description": "55GB, 512MB or bytes", "examples": ["55GB"]}),
]
