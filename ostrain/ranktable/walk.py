"""Reading keys of a table, each with the rule that a wrong one breaks."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Any

from ostrain.ranktable.findings import Findings, quoted
from ostrain.ranktable.locate import Path
from ostrain.spec.problems import did_you_mean

_DIGITS = re.compile(r"[0-9]{1,19}\Z")
_MAX_U32 = 2**32 - 1
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Object = dict[str, Any]


def is_digits(text: str) -> bool:
    """Decimal digits that fit HCCL's 32 bits."""
    return bool(_DIGITS.match(text)) and int(text) <= _MAX_U32


@lru_cache(maxsize=1 << 17)  # a table's addresses are read by several rules
def address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


class Walk:
    """Keys of a table's objects. What is wrong goes to ``findings``; the caller gets None and goes on."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings

    def missing(self, holder: Object, path: Path, key: str, *, rule: str = "missing", next_step: str = "") -> None:
        few = len(holder) < 50 and len(self.findings.all) < 200  # guessing takes time
        near = did_you_mean(key, holder) if few else ""
        near = near.replace("did you mean", "is it written as")
        self.findings.add(rule, path, f"{key} is missing{near}", next_step=next_step)

    def entries(self, holder: Object, path: Path, key: str) -> list[tuple[Path, Object]]:
        """The objects of a list that has to be there and hold something."""
        found = []
        for where, item in self.items(holder, path, key):
            if isinstance(item, dict):
                found.append((where, item))
            else:
                self.findings.add("type", where, f"{quoted(item)} is no object {{…}}", next_step="write an object")
        return found

    def items(self, holder: Object, path: Path, key: str) -> list[tuple[Path, Any]]:
        where = (*path, key)
        value = holder.get(key)
        if key not in holder:
            self.missing(holder, path, key)
        elif not isinstance(value, list):
            self.findings.add("type", where, f"{key} is {quoted(value)}, not a list", next_step="write a list […]")
        elif not value:
            self.findings.add("empty", where, f"{key} is empty")
        else:
            return [((*where, number), item) for number, item in enumerate(value)]
        return []

    def text(self, holder: Object, path: Path, key: str, *, needed: bool = True) -> str | None:
        """A string, None where there is none."""
        if key not in holder:
            if needed:
                self.missing(holder, path, key)
            return None
        value = holder[key]
        if isinstance(value, str):
            return value
        hint = ""
        if isinstance(value, int) and not isinstance(value, bool):
            hint = f'write "{str(value)[:20]}" in quotes'
            if key == "rank_id":
                hint += "; merge_hccl.py writes numbers, `ostrain ranktable merge` and `convert --to` mend them"
        self.findings.add("type", (*path, key), f"{key} is {quoted(value)}, not a string", next_step=hint)
        return None

    def name(self, holder: Object, path: Path, key: str, limit: int, rule: str) -> str | None:
        """A string of 1 to ``limit`` characters."""
        value = self.text(holder, path, key)
        if value == "":
            self.findings.add("empty", (*path, key), f"{key} is empty")
            return None
        if value is not None and len(value.encode("utf-8", "surrogatepass")) > limit:
            self.findings.add(rule, (*path, key), f"{key} is longer than {limit} characters")
        return value

    def number(self, holder: Object, path: Path, key: str, *, needed: bool = True, rule: str = "number") -> int | None:
        """A number written as a string, as 1.0 and 1.2 have them."""
        value = self.text(holder, path, key, needed=needed)
        if value is None:
            return None
        if not is_digits(value):
            self.findings.add(rule, (*path, key), f"{key} {quoted(value)} is no number")
            return None
        return int(value)

    def integer(
        self, holder: Object, path: Path, key: str, low: int, high: int, *, needed: bool = True, rule: str = "range"
    ) -> int | None:
        """A number written as one, as 2.0 has them."""
        if key not in holder:
            if needed:
                self.missing(holder, path, key)
            return None
        value = holder[key]
        if not isinstance(value, int) or isinstance(value, bool):
            hint = f"write {value} without quotes" if isinstance(value, str) and is_digits(value) else "write a number"
            self.findings.add("type", (*path, key), f"{key} is {quoted(value)}, not a whole number", next_step=hint)
            return None
        if not low <= value <= high:
            self.findings.add(rule, (*path, key), f"{key} is {quoted(value)}; {low} to {high} are possible")
            return None
        return value

    def port(self, holder: Object, path: Path, key: str) -> int | None:
        """An optional port of 1.0 and 1.2."""
        value = self.number(holder, path, key, needed=False, rule="port")
        return self.port_in_range(value, (*path, key))

    def port_in_range(self, value: int | None, path: Path) -> int | None:
        if value is None:
            return None
        if not 1 <= value <= 65535:
            self.findings.add("port", path, f"{path[-1]} {value} is not within 1 to 65535")
            return None
        if value < 1024:
            self.findings.add("port_reserved", path, f"{path[-1]} {value} is one of the system's ports")
        return value

    def count(self, holder: Object, path: Path, key: str, listed: str, *, rule: str, needed: bool = True) -> None:
        """``key`` has to be the length of the list ``listed``."""
        value = self.number(holder, path, key, needed=needed)
        entries = holder.get(listed)
        if value is not None and isinstance(entries, list) and value != len(entries):
            self.findings.add(rule, (*path, key), f'{key} is "{value}", but {listed} holds {len(entries)}')
