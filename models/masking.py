"""Secrets stay out of what a worker writes about itself: events and faults. Its printed lines are masked by the node
agent's wrapper (cluster/agent.py), which the payload does not need to run."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from typing import Any

_LEAST = 4  # letters; masking anything shorter would only garble the text


@lru_cache(maxsize=1)
def _values(names: str) -> tuple[tuple[str, str], ...]:
    """(spelling, name), the longest first."""
    found: dict[str, str] = {}
    for name in names.split():
        value = os.environ.get(name, "")
        lines = [line for line in value.splitlines() if len(line) >= 8]
        for one in (value, json.dumps(value)[1:-1], repr(value)[1:-1], *lines):
            if len(one) >= _LEAST:
                found[one] = name
    return tuple(sorted(found.items(), key=lambda pair: -len(pair[0])))


def masked(value: Any) -> Any:
    """``value`` with every secret that OSTRAIN_SECRETS names replaced, in strings at any depth."""
    if isinstance(value, str):
        for one, name in _values(os.environ.get("OSTRAIN_SECRETS", "")):
            value = value.replace(one, f"[secret {name}]")
        return value
    if isinstance(value, dict):
        return {key: masked(item) for key, item in value.items()}
    return [masked(item) for item in value] if isinstance(value, list | tuple) else value
