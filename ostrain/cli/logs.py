"""``ostrain logs``: the log lines of all nodes, each with its node and rank."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from cluster.backend import Backend, Chunk, FollowItem, FollowLost, RunRef
from models.units import parse_duration
from ostrain.cli.common import json_option, opened_backend, opened_store
from ostrain.cursor import Offsets, OutputCursor
from ostrain.errors import OstrainError
from ostrain.logs import SOURCES, Line, LineAssembler, LineFilter, printable
from ostrain.paths import state_dir
from ostrain.states import ExitCode
from ostrain.status import refresh, unsupervised
from ostrain.store import Run, Store
from ostrain.talk import say


@click.command()
@click.argument("run", default="last")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends. A follow that was cut off is continued.")
@click.option("--node", "nodes", multiple=True, help="Only this node; may be repeated.")
@click.option("--rank", "ranks", multiple=True, type=int, help="Only this global rank; may be repeated.")
@click.option("--source", "sources", multiple=True, type=click.Choice(SOURCES), help="Which logs [default: worker].")
@click.option("--attempt", type=int, help="Only this attempt [default: all].")
@click.option("--since", help="Only lines younger than this: 30s, 5m, 1h.")
@click.option("--grep", help="Only lines in which this regular expression is found.")
@click.option("--from-start", is_flag=True, help="With -f: from the first line, even if an earlier follow was cut off.")
@json_option
def logs(
    run: str,
    follow: bool,
    nodes: tuple[str, ...],
    ranks: tuple[int, ...],
    sources: tuple[str, ...],
    attempt: int | None,
    since: str | None,
    grep: str | None,
    from_start: bool,
    as_json: bool,
) -> int:
    """Show the logs of RUN (default: the newest), every line with its node and rank.

    With -f lines are shown as they are written, and each exactly once: a follow that was interrupted or killed
    leaves a cursor, and the next one with the same selection goes on behind its last line.
    """
    with opened_store() as store:
        found = store.find(run)
        chosen = _filter(found, nodes, ranks, sources, attempt, since, grep)
        if hint := unsupervised(found):
            say(hint)
        with opened_backend(found.plan) as backend:
            printer = _Printer(as_json)
            if not follow:
                _show_all(backend, found, chosen, printer)
                return int(ExitCode.OK)
            return _follow(store, backend, found, chosen, printer, fresh=from_start or since is not None)


def _filter(
    run: Run,
    nodes: tuple[str, ...],
    ranks: tuple[int, ...],
    sources: tuple[str, ...],
    attempt: int | None,
    since: str | None,
    grep: str | None,
) -> LineFilter:
    known = [node.name for node in run.plan.everywhere().nodes]
    for node in nodes:
        if node not in known:
            shown = ", ".join(known[:8]) + (" …" if len(known) > 8 else "")
            raise OstrainError(f"run {run.run_id} has no node {node!r}; it has {shown}", exit_code=ExitCode.USAGE)
    for rank in ranks:
        if not 0 <= rank < run.plan.world:
            raise OstrainError(
                f"run {run.run_id} has no rank {rank}; it has 0 to {run.plan.world - 1}", exit_code=ExitCode.USAGE
            )
    try:
        horizon = time.time() - parse_duration(since) if since else None
        pattern = re.compile(grep) if grep else None
    except (ValueError, re.error) as error:
        raise OstrainError(f"--since or --grep cannot be read: {error}", exit_code=ExitCode.USAGE) from error
    return LineFilter(frozenset(nodes), frozenset(ranks), frozenset(sources or ("worker",)), attempt, horizon, pattern)


class _Printer:
    """Lines as bytes for standard output."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._styled = sys.stdout.isatty()

    def __call__(self, line: Line) -> bytes:
        if self._as_json:
            import json

            return (json.dumps({"node": line.node, "rank": line.rank, "source": line.source, "attempt": line.attempt,
                                "offset": line.offset, "text": line.text}) + "\n").encode()  # fmt: skip
        text = printable(line.text, styled=True) if self._styled else line.text
        return f"{line.prefix} | {text}\n".encode("utf-8", "surrogateescape")


def _show_all(backend: Backend, run: Run, chosen: LineFilter, printer: _Printer) -> None:
    assembler = LineAssembler()
    out = sys.stdout.buffer
    items = backend.follow(RunRef(run.run_id, run.plan.everywhere()), {}, chosen.patterns(), until_final=False)
    for item in items:
        if isinstance(item, Chunk):
            out.writelines(printer(line) for line in assembler.feed(item) if chosen(line))
        elif isinstance(item, FollowLost):
            say(str(item.error))
    out.writelines(printer(line) for line in assembler.flush() if chosen(line))
    out.flush()


def _follow(store: Store, backend: Backend, run: Run, chosen: LineFilter, printer: _Printer, *, fresh: bool) -> int:
    selection = chosen.key() + repr(printer._as_json)
    cursor = OutputCursor(state_dir() / "cursors" / run.run_id, selection)
    try:
        if not cursor.held:
            say("another follow of these lines is at work; this one starts from the first line")
        elif not fresh:
            owed = cursor.restore()
            if cursor.offsets:
                say("going on behind the last follow; --from-start shows everything")
            cursor.write(owed, cursor.offsets)
        return _pump(store, backend, run, chosen, printer, cursor)
    except KeyboardInterrupt:
        say(f"\nstopped following; the run goes on, and `ostrain logs -f {run.run_id}` goes on behind this line")
        return int(ExitCode.INTERRUPTED)
    finally:
        cursor.close()


def _pump(store: Store, backend: Backend, run: Run, chosen: LineFilter, printer: _Printer, cursor: OutputCursor) -> int:
    assembler = LineAssembler()
    offsets: Offsets = {node: dict(paths) for node, paths in cursor.offsets.items()}
    given_up: set[str] = set()
    for item in _items(store, backend, run, chosen, cursor):
        if isinstance(item, FollowLost) and item.final:
            given_up.add(item.node)
        _take(item, assembler, offsets, chosen, printer, cursor)
    _write(assembler.flush(), offsets, chosen, printer, cursor)
    told = refresh(store, store.get(run.run_id), backend)
    say(f"{run.run_id} {told.state.value}: {told.reason}")
    if given_up:
        say(f"lines of {', '.join(sorted(given_up))} may be missing; `ostrain logs -f {run.run_id}` goes on from here")
        return int(ExitCode.UNREACHABLE)
    if told.state.final:
        cursor.finish()
    elif hint := unsupervised(store.get(run.run_id)):
        say(hint)
    return told.exit_code


def _items(store: Store, backend: Backend, run: Run, chosen: LineFilter, cursor: OutputCursor) -> Iterator[FollowItem]:
    """What the nodes write; of a run that is started again when it fails, through all its attempts."""
    if not run.plan.restart:
        return backend.follow(RunRef(run.run_id, run.plan), cursor.offsets, chosen.patterns())
    from ostrain.attempts import follow_attempts

    return follow_attempts(store, backend, run, cursor.offsets, chosen.patterns())


def _take(
    item: FollowItem,
    assembler: LineAssembler,
    offsets: Offsets,
    chosen: LineFilter,
    printer: _Printer,
    cursor: OutputCursor,
) -> None:
    if isinstance(item, Chunk):
        _write(assembler.feed(item), offsets, chosen, printer, cursor)
    elif isinstance(item, FollowLost):
        state = "given up" if item.final else "trying again"
        say(f"{item.error}\n  {state}")


def _write(
    lines: Iterable[Line], offsets: Offsets, chosen: LineFilter, printer: _Printer, cursor: OutputCursor
) -> None:
    batch = bytearray()
    seen = False
    for line in lines:
        seen = True
        offsets.setdefault(line.node, {})[line.path] = line.end
        if chosen(line):
            batch += printer(line)
    if seen:
        cursor.write(bytes(batch), offsets)


def forget(run_id: str) -> None:
    """Delete the cursors of a run that is removed."""
    import shutil

    folder: Path = state_dir() / "cursors" / run_id
    shutil.rmtree(folder, ignore_errors=True)
