"""``python -m models.convert SRC DST``: weights of any program into safetensors with PyTorch names, or the other way.

Exit codes: 0 written; 64 wrong options; 66 weights that cannot be read or are not whole; 67 no space; 1 anything else.
"""

from __future__ import annotations

import argparse
import errno
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from models.checkpoint.convert import DTYPES, safetensors_header, to_dtype, write_whole
from models.convert.files import open_weights, readable
from models.convert.mindspore_files import ckpt_chunks
from models.convert.names import KINDS
from models.convert.plan import Item, Plan, in_mindspore, make_plan
from models.convert.stored import FLOATS, TYPES, Stored
from models.exits import BAD_CHECKPOINT, BAD_CONFIG, DISK_FULL, PayloadError

_SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        _check_target(options.target, options.to, options.force)
        plan = make_plan(open_weights(options.source, options.take), options.kind)
        if plan.whole or options.allow_partial:
            items = plan.items if options.to == "pytorch" else in_mindspore(plan)
            items = [_typed(item, options.dtype) for item in items]
            _write(options.target, options.source, items)
            plan.items = items
    except PayloadError as error:
        return _tell(error)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        code = DISK_FULL if full else 1
        return _tell(PayloadError(code, "a file cannot be written", where=str(options.target), why=error.strerror or "",
                                  next_step="look at that disk: its space and permissions"))  # fmt: skip
    written = plan.whole or options.allow_partial
    if options.json:
        print(json.dumps(plan.report() | {"target": str(options.target), "written": written}))
    else:
        print("\n".join(_lines(plan, options.target, options.all)))
    if written:
        return 0
    return _tell(
        PayloadError(
            BAD_CHECKPOINT, "the weights are not whole, nothing was written", where=str(options.source),
            why=f"{len(plan.missing)} tensors are missing, {len(plan.mismatched)} of another shape",
            next_step="fetch the file again, name its kind with --kind, or write what is there with --allow-partial",
        )
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models.convert", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("source", type=Path, help="a file, an index of shards, or a folder with either")
    parser.add_argument("target", type=Path, help="ends in .safetensors, or in .ckpt with --to mindspore")
    parser.add_argument("--kind", choices=KINDS, help="what the weights are of [default: what their names tell]")
    parser.add_argument("--to", choices=("pytorch", "mindspore"), default="pytorch", help="whose names to write")
    parser.add_argument("--take", help="part of the file to take [default: ema, state_dict or model]")
    parser.add_argument("--dtype", choices=("keep", *DTYPES), default="keep", help="of numbers that are floats")
    parser.add_argument("--allow-partial", action="store_true", help="write what is there, although it is not whole")
    parser.add_argument("--force", action="store_true", help="replace the target if it exists")
    parser.add_argument("--all", action="store_true", help="name every tensor")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    return parser


def _check_target(target: Path, to: str, force: bool) -> None:
    suffixes = (".safetensors", ".ckpt") if to == "mindspore" else (".safetensors",)
    if target.suffix not in suffixes:
        raise PayloadError(
            BAD_CONFIG, f"the target does not end in {' or '.join(suffixes)}", where=str(target),
            next_step=f"name it {target.name}{suffixes[0]}",
        )  # fmt: skip
    if target.exists() and not force:
        raise PayloadError(
            BAD_CONFIG, "the target exists", where=str(target), next_step="name another file, or add --force"
        )


def _typed(item: Item, dtype: str) -> Item:
    """The item in another type of floats."""
    stored = item.stored
    if dtype == "keep" or stored.dtype not in FLOATS or stored.dtype == DTYPES[dtype][0]:
        return item
    code = DTYPES[dtype][0]
    return Item(item.name, item.source, Stored(code, stored.shape, lambda: to_dtype(stored.values(), dtype)), item.what)


def _write(target: Path, source: Path, items: Sequence[Item]) -> None:
    """Tensor by tensor: memory stays at the largest one."""
    total = sum(item.stored.nbytes for item in items) or 1
    progress = sys.stderr.isatty()

    def value(stored: Stored) -> np.ndarray:
        # Only what is wrong with the source is about it: a full disk is about the target.
        with readable(source):
            return stored.read()

    def chunks() -> Iterator[bytes]:
        entries = {item.name: (item.stored.dtype, item.stored.shape, item.stored.nbytes) for item in items}
        yield safetensors_header(entries, {"format": "pt"})
        for item in items:
            yield np.ascontiguousarray(value(item.stored), TYPES[item.stored.dtype]).tobytes()

    def told(data: Iterator[bytes]) -> Iterator[bytes]:
        done, shown = 0, -1
        for chunk in data:
            yield chunk
            done += len(chunk)
            if progress and int(100 * done / total) != shown and total > 256 << 20:
                shown = min(100, int(100 * done / total))
                print(f"\rwriting {shown} %", end="", file=sys.stderr, flush=True)
        if shown >= 0:
            print("\r" + " " * 20 + "\r", end="", file=sys.stderr, flush=True)

    weights = {item.name: replace(item.stored, read=partial(value, item.stored)) for item in items}
    write_whole(target, told(ckpt_chunks(weights) if target.suffix == ".ckpt" else chunks()))


def _lines(plan: Plan, target: Path, everything: bool) -> list[str]:
    """The report for people."""
    source = plan.source
    section = f", section {source.section}" if source.section else ""
    lines = [f"{source.path}: {plan.kind}, {source.format}{section}", f"-> {target}"]
    counts = [(what, plan.count(what)) for what in ("matched", "renamed", "reshaped")]
    counts += [("missing", len(plan.missing)), ("other shape", len(plan.mismatched)), ("unused", len(plan.unused))]
    lines += [f"  {what:<12} {count}" for what, count in counts]
    lists = [
        ("missing", plan.missing),
        ("other shape", [f"{name} {list(found)}, expected {list(wanted)}" for name, found, wanted in plan.mismatched]),
        ("unused", plan.unused),
        ("renamed", [f"{item.source} -> {item.name}" for item in plan.items if item.what == "renamed"]),
        ("reshaped", [f"{item.source} -> {item.name} {list(item.stored.shape)}" for item in plan.items
                      if item.what == "reshaped"]),
    ]  # fmt: skip
    if everything:
        lists.append(("matched", [item.name for item in plan.items if item.what == "matched"]))
    for what, names in lists:
        shown = names if everything else names[:_SHOWN]
        lines += [f"  {what}: {name}" for name in shown]
        if len(names) > len(shown):
            lines.append(f"  {what}: … and {len(names) - len(shown)} more (--all names them)")
    return lines


def _tell(error: PayloadError) -> int:
    lines = [f"error: {error.what}"]
    for label, text in (("where", error.where), ("why", error.why), ("next", error.next_step)):
        if text:
            lines.append(f"  {label}: {text}")
    print("\n".join(lines), file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
