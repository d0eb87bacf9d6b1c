"""Which versions of MindSpore, CANN, driver and firmware go together.

Sources: MindSpore's own list of CANN versions (mindspore/run_check/_check_version.py of the wheels 2.7.1 and 2.10.0)
and its installation pages (2.3 to 2.6); "CANN Version Mapping" of the CANN 8.5.0 release notes and the compatibility
tables of MindIE 2.1.RC1 and MindSDK for drivers (Ascend HDK); ``compatible_version_fw`` and ``compatible_version_drv``
in the version.info files of driver and firmware, which say it themselves. Not run on hardware.
"""

from __future__ import annotations

import re

# MindSpore -> what its check accepts as the first two components of CANN's version.
MINDSPORE_CANN: dict[str, tuple[str, ...]] = {
    "2.3": ("8.0",),
    "2.4": ("8.0",),
    "2.5": ("8.0",),
    "2.6": ("8.1",),
    "2.7": ("7.8", "8.2", "8.3", "8.5"),
    "2.8": ("8.3", "8.5"),
    "2.10": ("8.2", "8.3", "8.5", "9.0", "9.1"),
}
# CANN -> drivers (Ascend HDK) that it is documented with, by the first two components.
CANN_DRIVER: dict[str, tuple[str, ...]] = {
    "8.0": ("23.0", "24.1", "25.0", "25.1", "25.2"),
    "8.1": ("24.1", "25.0", "25.1", "25.2"),
    "8.2": ("24.1", "25.0", "25.2", "25.3"),
    "8.3": ("25.0", "25.2", "25.3", "25.5"),
    "8.5": ("25.0", "25.2", "25.3", "25.5"),
    "9.1": ("26.1",),
}


def fields(text: str) -> dict[str, str]:
    """Lines ``key=value`` of a version file, keys in small letters; the first of each."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals:
            found.setdefault(key.strip().lower(), value.strip())
    return found


def short(version: str) -> str:
    """The first two components: ``8.2`` of ``8.2.RC1``."""
    match = re.match(r"\d+\.\d+", version.strip())
    return match[0] if match else version.strip()


def version_of(kind: str, text: str) -> str:
    """Version in a file of driver, firmware, CANN (``ascend_toolkit_install.info``) or its compiler."""
    told = fields(text)
    if kind == "firmware":
        return told.get("version") or told.get("firmware_version", "")
    return told.get("version", "")


def cann_of_mindspore(mindspore: str, cann: str) -> str:
    """What is wrong with a pair; empty where it fits or nobody knows."""
    accepted = MINDSPORE_CANN.get(short(mindspore))
    if accepted is None or short(cann) in accepted:
        return ""
    return f"MindSpore {mindspore} goes with CANN {', '.join(accepted)}, not {cann}"


def driver_of_cann(cann: str, driver: str) -> str:
    """What is wrong with a pair; empty where it fits or nobody knows."""
    known = CANN_DRIVER.get(short(cann))
    if known is None or short(driver) in known or _number(driver) > max(map(_number, known)):
        return ""  # newer drivers carry older CANNs
    return f"CANN {cann} is documented with drivers {', '.join(known)}, not {driver}"


def firmware_of_driver(driver_text: str, firmware: str) -> str:
    """The driver's own list: ``compatible_version_fw=[7.0.0,7.2.99]``, ranges of firmware versions."""
    ranges = _ranges(fields(driver_text).get("compatible_version_fw", ""))
    if not ranges or any(_number(low) <= _number(firmware) <= _number(high) for low, high in ranges):
        return ""
    told = " and ".join(f"{low} to {high}" for low, high in ranges)
    return f"the driver takes firmware {told}, not {firmware}"


def driver_of_firmware(firmware_text: str, driver: str) -> str:
    """The firmware's own list: ``compatible_version_drv=[23.0.rc3,23.0.rc3.],[23.0.0,23.0.0.]``, versions and stems."""
    pairs = _ranges(fields(firmware_text).get("compatible_version_drv", ""))
    mine = driver.lower()
    if not pairs or any(mine == low.lower() or mine.startswith(high.lower()) for low, high in pairs):
        return ""
    return f"the firmware takes drivers {', '.join(low for low, _ in pairs)}, not {driver}"


def _ranges(text: str) -> list[tuple[str, str]]:
    return [(low.strip(), high.strip()) for low, high in re.findall(r"\[([^,\]]+),([^\]]+)\]", text)]


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])
