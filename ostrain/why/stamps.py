"""Reading log lines: when a line was written, how grave it is, what it says.

* the payload's, in UTC: ``2026-01-02T03:04:05.678Z LEVEL text``;
* MindSpore's and CANN's (its log reference, logreference_0001), in local time:
  ``[LEVEL] MODULE(pid,…):2026-01-02-03:04:05.678.901 [file:line] text``;
* CANN's error messages, local: ``EI0004: 2026-01-02-03:04:05.678.901 text``, with or without ``[PID: n]``;
* Python's logging, local: ``2026-01-02 03:04:05,678 … LEVEL …``;
* the node agent's: seconds since the epoch.
"""

from __future__ import annotations

import calendar
import re
import time
from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    INFO = 0
    WARNING = 1
    ERROR = 2


@dataclass(frozen=True)
class Stamp:
    """What a line tells of itself. time: seconds since the epoch by its node's clock, None where it is undated; level
    and text as they stand, or by the words of an undated line."""

    time: float | None
    level: Level
    text: str


_LEVELS = {
    "DEBUG": Level.INFO, "INFO": Level.INFO, "EVENT": Level.INFO, "TRACE": Level.INFO, "WARNING": Level.WARNING,
    "WARN": Level.WARNING, "ERROR": Level.ERROR, "CRITICAL": Level.ERROR, "FATAL": Level.ERROR,
}  # fmt: skip
_WORDS = "|".join(_LEVELS)
_OURS = re.compile(rf"(\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?Z ({_WORDS}) (.*)")
_GLOG = re.compile(r"\[([A-Z]+)\] \S+?\([^)]*\):\s?(\d{4}-\d\d-\d\d-\d\d:\d\d:\d\d)\.(\d{3})\.?(\d{3})?\s*(.*)")
_CANN = re.compile(r"(?:\S*\s?\[PID: ?\d+\]|E[0-9A-Z]\d{4}:)\s*(\d{4}-\d\d-\d\d-\d\d:\d\d:\d\d)\.(\d{3})\.?(\d{3})?\s*")
_PYTHON = re.compile(r"\[?(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:[,.](\d{1,6}))?\]?[\s\-:|]*(.*)")
_EPOCH = re.compile(r"(\d{10}\.\d{3}) (.*)")
# Undated lines that are errors by what they say.
_GRAVE = re.compile(
    r"Traceback \(most recent call last\)|Fatal Python error|^\s*(?:error|fatal|FATAL|ERROR)\b"
    r"|^[\w.]*(?:Error|Exception): |Segmentation fault|Bus error|core dumped|Killed$|terminate called"
    r"|command not found|\bE[0-9A-Z]\d{4}:"
)


def read_stamp(line: str, utc_offset: float) -> Stamp:
    """A line's own time, level and text. ``utc_offset``: seconds its node's local time is ahead of UTC."""
    for reader in (_ours, _glog, _cann, _python, _epoch):
        if (found := reader(line, utc_offset)) is not None:
            return found
    return Stamp(None, Level.ERROR if _GRAVE.search(line) else Level.INFO, line.strip())


def _seconds(text: str, form: str) -> float | None:
    try:
        return float(calendar.timegm(time.strptime(text, form)))
    except ValueError:  # 2026-99-99: looks like a date, is none
        return None


def _ours(line: str, utc_offset: float) -> Stamp | None:
    match = _OURS.match(line)
    moment = _seconds(match[1], "%Y-%m-%dT%H:%M:%S") if match else None
    if match is None or moment is None:
        return None
    return Stamp(moment + float(match[2] or 0), _LEVELS[match[3]], match[4])


def _glog(line: str, utc_offset: float) -> Stamp | None:
    # msrun puts nothing before a line, but a terminal's progress bar may stand there.
    match = _GLOG.search(line)
    moment = _seconds(match[2], "%Y-%m-%d-%H:%M:%S") if match else None
    if match is None or moment is None:
        return None
    moment += int(match[3]) / 1e3 + int(match[4] or 0) / 1e6 - utc_offset
    return Stamp(moment, _LEVELS.get(match[1], Level.INFO), match[5])


def _cann(line: str, utc_offset: float) -> Stamp | None:
    match = _CANN.search(line)
    moment = _seconds(match[1], "%Y-%m-%d-%H:%M:%S") if match else None
    if match is None or moment is None:
        return None
    moment += int(match[2]) / 1e3 + int(match[3] or 0) / 1e6 - utc_offset
    return Stamp(moment, Level.ERROR, line.strip())


def _python(line: str, utc_offset: float) -> Stamp | None:
    match = _PYTHON.match(line)
    moment = _seconds(f"{match[1]} {match[2]}", "%Y-%m-%d %H:%M:%S") if match else None
    if match is None or moment is None:
        return None
    word = re.search(rf"\b({_WORDS})\b", match[4][:80])
    level = _LEVELS[word[1]] if word else Level.ERROR if _GRAVE.search(match[4]) else Level.INFO
    return Stamp(moment + float(f"0.{match[3] or 0}") - utc_offset, level, match[4])


def _epoch(line: str, utc_offset: float) -> Stamp | None:
    match = _EPOCH.match(line)
    return Stamp(float(match[1]), Level.INFO, match[2]) if match else None
