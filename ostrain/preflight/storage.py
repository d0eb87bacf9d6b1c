"""Disks of the nodes: space and speed for the checkpoints that are planned."""

from __future__ import annotations

from collections.abc import Iterator

from ostrain.preflight.situation import ROOT, Situation
from ostrain.preflight.verdict import Verdict, fail, ok, warn

LEAST_FREE = 256 << 20
LEAST_INODES = 1000
LONG = 60.0  # seconds a checkpoint may take to write without a word


def size(count: float) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"


def needed(situation: Situation, path: str) -> int:
    """Bytes that have to be free: a checkpoint is written whole before an older one goes."""
    wishes = situation.wishes
    own = wishes.checkpoint if path == wishes.checkpoint_path else 0
    return max(LEAST_FREE if path == ROOT else 0, own)


def space(situation: Situation) -> Iterator[Verdict]:
    for name, facts in situation.told("disk").items():
        for path, told in facts.items():
            least, base = needed(situation, path), told["base"]
            what = f"{size(told['free'])} free in {base}"
            if not told["writable"]:
                step = "name another `root` in the inventory, or `checkpoint.dir` in the job"
                yield fail(name, f"cannot write to {base}", "it is not writable for this user", step)
            elif told["free"] < least:
                why = f"a checkpoint needs {size(least)} there" if least > LEAST_FREE else f"{size(least)} are needed"
                yield fail(name, what, why, "free space there, or name another `root` or `checkpoint.dir`")
            elif 0 <= told["inodes"] < LEAST_INODES:
                yield fail(name, f"{told['inodes']} inodes left in {base}", "", "delete files there")
            elif told["free"] < 2 * least and least > LEAST_FREE:
                yield warn(name, what, f"one checkpoint of {size(least)} fits, not two", "free space, or keep fewer")
            else:
                yield ok(name, what)


def speed(situation: Situation) -> Iterator[Verdict]:
    planned, limit = situation.wishes.checkpoint, situation.wishes.config.checkpoint_time
    for name, facts in situation.told("speed").items():
        for told in facts.values():
            if told["problem"]:
                why, step = told["problem"], f"look at the disk behind {told['base']}"
                yield fail(name, "the disk takes no test file", why, step)
                continue
            rate = told["bytes"] / told["seconds"]
            seconds = planned / rate
            what = f"{size(rate)}/s to {told['base']}"
            what += f", a checkpoint in {max(1, round(seconds))} s" if planned else ""
            why = f"this node writes {size(planned)} of a checkpoint; the limit is {limit:g} s"
            step = "put `root` or `checkpoint.dir` on a faster disk, or raise check.checkpoint_time"
            if seconds > limit:
                yield fail(name, what, why, step)
            elif seconds > LONG:
                yield warn(name, what, why, "save seldom, or on a faster disk")
            else:
                yield ok(name, what)
