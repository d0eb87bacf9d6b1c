"""Output of ``npu-smi``: which chips a node has, how they are, where they sit in a super pod."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

_COLUMNS = re.compile(r"\s{2,}|\t+")


@dataclass(frozen=True)
class Chip:
    """A chip: one rank. npu, chip: as ``-i`` and ``-c`` take them; device: N of /dev/davinciN."""

    npu: int
    chip: int
    device: int
    name: str = ""
    health: str = ""


@dataclass(frozen=True)
class PodPlace:
    """Where a chip sits in a super pod."""

    super_device_id: int
    super_pod_id: str


def parse_info(text: str) -> tuple[list[Chip], bool]:
    """Chips of ``npu-smi info``, and whether it prints physical ids (A3 and newer).

    Two rows a chip: ``NPU Name | Health | …`` and ``Chip [Phy-ID] | Bus-Id | …``; the table of processes is not read.
    """
    chips: list[Chip] = []
    physical = False
    first: tuple[int, str, str] | None = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "Process id" in line:
            break
        physical = physical or bool(re.search(r"\|\s*Chip\s+Phy-ID", line))
        words = cells[0].split()
        if len(cells) < 3 or not words or not _number(words[0]):
            continue
        if first is None:
            first = (int(words[0]), " ".join(words[1:]), cells[1])
            continue
        npu, name, health = first
        first = None
        device = int(words[1]) if physical and len(words) > 1 and _number(words[1]) else npu
        chips.append(Chip(npu, int(words[0]), device, name, health))
    return chips, physical


def parse_map(text: str) -> list[Chip]:
    """Chips of ``npu-smi info -m``; rows of management controllers (``Mcu``) have none."""
    columns: list[str] = []
    chips = []
    for line in text.splitlines():
        cells = [cell for cell in _COLUMNS.split(line.strip()) if cell]
        if "NPU ID" in cells:
            columns = cells
            continue
        row = dict(zip(columns, cells, strict=False))
        npu, chip, logic = (row.get(key, "") for key in ("NPU ID", "Chip ID", "Chip Logic ID"))
        if _number(npu) and _number(chip) and _number(logic) and "mcu" not in row.get("Chip Name", "").lower():
            physical = next((row[key] for key in row if "phy" in key.lower()), npu)
            chips.append(Chip(int(npu), int(chip), int(physical) if _number(physical) else int(npu),
                              row.get("Chip Name", "")))  # fmt: skip
    return chips


def parse_list(text: str) -> int | None:
    """``Total Count`` of ``npu-smi info -l``: cards, not chips."""
    value = fields(text).get("total count", "")
    return int(value) if _number(value) else None


def parse_pod(text: str) -> PodPlace | None:
    """``npu-smi info -t spod-info -i NPU -c CHIP``: SDID and Super Pod ID."""
    found = fields(text)
    sdid, pod = found.get("sdid", ""), found.get("super pod id", "")
    return PodPlace(int(sdid), pod) if _number(sdid) and pod else None


def fields(text: str) -> dict[str, str]:
    """Lines ``Key : value``, keys in small letters; the first of each."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        for cell in line.split("|"):
            key, colon, value = cell.partition(":")
            if colon and key.strip():
                found.setdefault(key.strip().lower(), value.strip())
    return found


def joined(info: list[Chip], mapped: list[Chip]) -> list[Chip]:
    """Chips of both listings; names and health from ``info``, which the other has not or worse."""
    known = {(chip.npu, chip.chip): chip for chip in mapped}
    for chip in info:
        other = known.get((chip.npu, chip.chip))
        known[chip.npu, chip.chip] = replace(chip, device=other.device) if other else chip
    return [known[key] for key in sorted(known)]


def _number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 12
