"""Reading the stacks that workers dump (faulthandler's text), and saying in one word what a rank is at.

The text, as CPython's Python/traceback.c writes it: a heading for every thread, ``Thread 0x… (most recent call
first):`` or ``Current thread 0x… …``, with a name in brackets from Python 3.14 on; then lines
``  File "path", line N in function``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

_HEADING = re.compile(r"(?:Current thread|Thread) 0x[0-9a-fA-F]+[^(]*\(most recent call first\)")
_FRAME = re.compile(r'  File "(.*)", line (\d+|\?\?\?) in (.*)$')
# How a library's path is told short: from its top package on.
_PACKAGES = re.compile(r".*/(?:site-packages|dist-packages|lib/python3\.\d+)/")
_OURS = re.compile(r"(?:^|/)(models/[\w/]+\.py)$")

# Collectives by the name of the function that makes them: the payload's own (models/parallel), MindSpore's
# (mindspore/communication/comm_func.py, mindspore/mint/distributed, ops.communication) and mpi4py's.
COLLECTIVES = frozenset(
    [
        "all_reduce", "allreduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "all_to_all",
        "all_to_all_single", "all_to_all_single_with_output_shape", "all_to_all_with_output_shape",
        "reduce_scatter", "reduce_scatter_tensor", "broadcast", "broadcast_bytes", "broadcast_object_list",
        "gather_bytes", "gather_into_tensor", "gather_object", "scatter_tensor", "scatter_object_list",
        "barrier", "sum_tensors", "create_group", "init_process_group", "Barrier", "Allreduce", "Allgather", "Bcast",
    ]
)  # fmt: skip
# Too common names to believe outside the library itself.
_LIBRARY_ONLY = frozenset(["send", "recv", "isend", "irecv", "batch_isend_irecv", "init"])
# Waiting for what the device was given to do, collectives among it: MindSpore dispatches ahead of the device.
_SYNCS = frozenset(
    ["asnumpy", "item", "synchronize", "stub_sync", "_sync", "wait_pipeline", "numpy", "__float__", "tolist"]
)
_COMMUNICATION = re.compile(r"(?:^|/)models/parallel/(?:group|ranks)\.py$")
_DATA = re.compile(r"(?:^|/)models/data/")
_SAVING = re.compile(r"(?:^|/)models/checkpoint/")


class Kind(Enum):
    """What a thread is at, as far as its frames tell."""

    COLLECTIVE = "waits in a collective"
    SYNC = "waits for its device"
    DATA = "reads data"
    SAVING = "writes or reads a checkpoint"
    ELSEWHERE = "is elsewhere"
    UNKNOWN = "is at an unknown place"


@dataclass(frozen=True)
class Frame:
    """One call. ``line`` is 0 where the interpreter could not tell."""

    path: str
    line: int
    function: str

    @property
    def short_path(self) -> str:
        """``models/step.py`` of ours; a library's from its top package on; else the last two parts."""
        if match := _OURS.search(self.path):
            return match[1]
        shorter = _PACKAGES.sub("", self.path)
        return shorter if shorter != self.path else "/".join(self.path.split("/")[-2:])

    @property
    def ours(self) -> bool:
        return _OURS.search(self.path) is not None and "/site-packages/mindspore/" not in self.path

    @property
    def key(self) -> tuple[str, int, str]:
        """The same for the same line on every node, wherever its code lies there."""
        return (self.short_path if self.ours else self.path.rpartition("/")[2], self.line, self.function)

    def __str__(self) -> str:
        return f"{self.short_path}:{self.line} {self.function}"


@dataclass(frozen=True)
class Stack:
    """One thread's calls, the innermost first."""

    frames: tuple[Frame, ...] = ()

    @cached_property
    def collective(self) -> Frame | None:
        """The call of a collective that the thread is inside of."""
        for frame in self.frames:
            name = frame.function.rpartition(".")[2]
            theirs = name in _LIBRARY_ONLY and "/mindspore/communication/" in frame.path
            if name in COLLECTIVES or theirs:
                return frame
        return next((frame for frame in self.frames if _COMMUNICATION.search(frame.path)), None)

    @property
    def kind(self) -> Kind:
        if not self.frames:
            return Kind.UNKNOWN
        if self.collective is not None:
            return Kind.COLLECTIVE
        paths = [frame.path for frame in self.frames]
        if any(_DATA.search(path) for path in paths):
            return Kind.DATA
        if any(_SAVING.search(path) for path in paths):
            return Kind.SAVING
        if any(frame.function in _SYNCS and not frame.ours for frame in self.frames[:4]):
            return Kind.SYNC
        return Kind.ELSEWHERE

    @property
    def place(self) -> Frame | None:
        """The frame to tell of: the collective, else the innermost one of the payload, else the innermost at all."""
        if self.collective is not None:
            return self.collective
        return next((frame for frame in self.frames if frame.ours), self.frames[0] if self.frames else None)


def parse(text: str) -> list[Stack]:
    """Every thread of a dump in its order; lines that are nothing of the kind (a cut-off end) are passed over."""
    stacks: list[list[Frame]] = []
    for line in text.splitlines():
        if _HEADING.match(line):
            stacks.append([])
        elif stacks and (match := _FRAME.match(line)):
            number = int(match[2]) if match[2].isdigit() else 0
            stacks[-1].append(Frame(match[1], number, match[3]))
    return [Stack(tuple(frames)) for frames in stacks]


def main_stack(text: str) -> Stack:
    """The main thread: the last one whose outermost call is no thread's start. Empty where there is none."""
    stacks = parse(text)
    for stack in reversed(stacks):
        if stack.frames and stack.frames[-1].function not in ("_bootstrap", "__bootstrap"):
            return stack
    return stacks[-1] if stacks else Stack()
