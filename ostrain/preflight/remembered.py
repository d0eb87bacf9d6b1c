"""What nodes said before of what seldom changes, in the state directory: a file a node, for a while.

Only what passed is kept. What changes from one moment to the next (devices, processes, ports, space, clocks) is asked
every time.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from models.files import write_atomic
from ostrain.paths import state_dir
from ostrain.plan import NodeAccess

LASTING = ("software", "speed", "files", "code")


class Memory:
    """Remembered parts of one node. expire: seconds; 0 remembers nothing."""

    def __init__(self, node: str, access: NodeAccess, expire: float, *, inspector: str) -> None:
        self._expire, self._inspector = expire, inspector
        place = hashlib.sha256(json.dumps([node, asdict(access)], sort_keys=True).encode()).hexdigest()[:16]
        self.path = state_dir() / "preflight" / f"{node}-{place}.json"
        self._parts: dict[str, dict[str, Any]] = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            value = json.loads(self.path.read_text())
        except (OSError, ValueError):  # nothing remembered, or not readable any more: ask again
            return {}
        return value if isinstance(value, dict) else {}

    def _key(self, options: dict[str, Any]) -> str:
        text = json.dumps([self._inspector, options], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def known(self, part: str, options: dict[str, Any], boot_id: str = "") -> tuple[dict[str, Any], float] | None:
        """Facts of a part and their age in seconds, where the same was asked and is fresh.

        boot_id: of the node now, where it is known; what was seen before a reboot does not count.
        """
        entry = self._parts.get(part)
        if not isinstance(entry, dict) or entry.get("key") != self._key(options):
            return None
        age = time.time() - float(entry.get("time", 0))
        if not 0 <= age < self._expire or (boot_id and entry.get("boot_id") != boot_id):
            return None
        return entry["facts"], age

    def keep(self, seen: dict[str, tuple[dict[str, Any], dict[str, Any]]], drop: Iterable[str], boot_id: str) -> None:
        """Remember parts (part -> (options, facts)), forget others."""
        for part in drop:
            self._parts.pop(part, None)
        for part, (options, facts) in seen.items():
            if part not in set(drop):
                entry = {"key": self._key(options), "time": time.time(), "boot_id": boot_id, "facts": facts}
                self._parts[part] = entry
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(self.path, json.dumps(self._parts).encode(), sync=False)
