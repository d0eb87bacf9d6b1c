"""From the lines of one log to what stands out in it: errors, each with all its lines as one, and known codes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ostrain.why.codes import Code, find_code
from ostrain.why.stamps import Level, Stamp, read_stamp

# A log in which a thousand things went wrong is told by its first ones; the count tells of the others.
MOST_BLOCKS = 40
_PROGRESS = re.compile(r"step \d+(?:/\d+)? loss|training finished")
# The line of a traceback or message that says most.
_EXCEPTION = re.compile(r"^[\w.]*(?:Error|Exception|Interrupt|Exit)\b:?|^error: ")
_FRAME = re.compile(r"^(?:Traceback|File \"|\^|~|-{5,}|- C\+\+|mindspore/ccsrc|Thread 0x|Current thread 0x|$)")


@dataclass
class Block:
    """One error of a log: its first line's time (by the node's clock), its lines, and the code they tell of.

    survived: the log shows progress after it. guessed: the time is that of the last dated line before it.
    """

    time: float | None
    level: Level
    lines: list[str] = field(default_factory=list)
    survived: bool = False
    guessed: bool = False
    code: Code | None = None

    @property
    def text(self) -> str:
        """The line that says most."""
        lines = [line.strip() for line in self.lines]
        if self.code is not None:
            for line in lines:
                found = find_code(line)
                if found is not None and found.code == self.code.code:
                    return line
        told = [line for line in lines if _EXCEPTION.match(line)]
        if told:
            return told[-1] if not told[0].startswith("error: ") else told[0]
        return next((line for line in lines if not _FRAME.match(line)), lines[0] if lines else "")


def read_blocks(text: str, utc_offset: float) -> list[Block]:
    """The errors of a log, oldest first, at most MOST_BLOCKS; warnings with a known code among them.

    A block goes on while lines are undated or errors, and ends at a line that tells of something else.
    """
    blocks: list[Block] = []
    for block in _blocks(text, utc_offset):
        if block.level is Level.INFO:  # progress: whatever stood before was survived
            for earlier in blocks:
                earlier.survived = True
        elif len(blocks) < MOST_BLOCKS:
            block.code = _code_of(block)
            if block.level is Level.ERROR or block.code is not None:
                blocks.append(block)
    return blocks


def _blocks(text: str, utc_offset: float) -> Iterator[Block]:
    """Errors and warnings as blocks, and every sign of progress as a block of level INFO."""
    current: Block | None = None
    last: float | None = None
    for line in text.splitlines():
        stamp = read_stamp(line, utc_offset)
        last = stamp.time if stamp.time is not None else last
        if _goes_on(current, stamp):
            assert current is not None
            current.lines.append(stamp.text[:2000])
            continue
        if current is not None:
            yield current
            current = None
        if stamp.level > Level.INFO:
            current = Block(last, stamp.level, [stamp.text[:2000]], guessed=stamp.time is None)
        elif _PROGRESS.match(stamp.text):
            yield Block(last, Level.INFO)
        elif stamp.time is None and find_code(stamp.text) is not None:
            current = Block(last, Level.WARNING, [stamp.text[:2000]], guessed=True)
    if current is not None:
        yield current


def _goes_on(current: Block | None, stamp: Stamp) -> bool:
    if current is None or len(current.lines) >= 400:
        return False
    if stamp.time is None:
        return not _PROGRESS.match(stamp.text)
    near = current.time is not None and abs(stamp.time - current.time) < 1.0
    return stamp.level == current.level and near and current.level is Level.ERROR


def _code_of(block: Block) -> Code | None:
    """The code of the first line that has one which is a fault of its own, else of the first at all."""
    found = [code for line in block.lines if (code := find_code(line)) is not None]
    return next((code for code in found if not code.consequence), found[0] if found else None)
