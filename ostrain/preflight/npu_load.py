"""How busy chips are, from ``npu-smi info``: AI cores, memory, and the table of processes."""

from __future__ import annotations

import re
from dataclasses import dataclass

IDLE_MB = 5000  # idle chips of 64 GB show 3.3 to 3.5 GB in use
IDLE_SHARE = 0.1
_PAIR = re.compile(r"(\d+)\s*/\s*(\d+)")


@dataclass(frozen=True)
class Load:
    """One chip. npu, chip: as npu-smi numbers them. used, total: memory in MB, 0 where it is not told."""

    npu: int
    chip: int
    cores: int
    used: int
    total: int

    @property
    def idle(self) -> bool:
        return self.cores == 0 and self.used <= max(IDLE_MB, IDLE_SHARE * self.total)


@dataclass(frozen=True)
class Holder:
    """A process on a chip; memory in MB."""

    npu: int
    chip: int
    pid: int
    name: str
    memory: int


def parse_load(text: str) -> list[Load]:
    """Second rows of ``npu-smi info``: ``Chip [Phy-ID] | Bus-Id | AICore Memory-Usage HBM-Usage``."""
    found, npu = [], -1
    for line in text.splitlines():
        if "Process id" in line:
            break
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        words = cells[0].split()
        if len(cells) < 3 or not words or not words[0].isdigit():
            continue
        if ":" not in cells[1]:  # no bus id: the first row
            npu = int(words[0])
            continue
        pairs = _PAIR.findall(cells[2])
        cores = re.match(r"\d+", cells[2])
        used, total = map(int, pairs[-1]) if pairs else (0, 0)
        found.append(Load(npu, int(words[0]), int(cores[0]) if cores else 0, used, total))
    return found


def parse_holders(text: str) -> list[Holder]:
    """Rows of the table of processes; chips without one print a sentence."""
    found = []
    for line in text.partition("Process id")[2].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        words = cells[0].split()
        if len(cells) >= 4 and len(words) == 2 and all(word.isdigit() for word in words) and cells[1].isdigit():
            memory = int(cells[3]) if cells[3].isdigit() else 0
            found.append(Holder(int(words[0]), int(words[1]), int(cells[1]), cells[2] or "?", memory))
    return found
