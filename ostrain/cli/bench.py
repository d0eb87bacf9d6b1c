"""``ostrain bench``: a matrix of jobs, one after the other, measured and compared."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ostrain.cli.common import json_option, opened_backend, opened_store, resolved_secrets
from ostrain.errors import OstrainError
from ostrain.states import ExitCode
from ostrain.talk import emit_json, say

if TYPE_CHECKING:
    from ostrain.bench.load import Bench
    from ostrain.bench.session import Session
    from ostrain.plan import LaunchPlan
    from ostrain.progress import Progress


@click.command()
@click.argument("bench", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="A.B=C", help="Override a key of the benchmark (repeatable)."
)
@click.option("--only", multiple=True, metavar="LABEL", help="Run this entry alone; may be repeated.")
@click.option("--repeat", type=click.IntRange(1, 1000), help="Runs of each entry, in turns; overrides the file.")
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder for results and report.")
@click.option("--keep-runs", is_flag=True, help="Keep the runs; else those that succeed are removed.")
@click.option("--fresh", is_flag=True, help="Measure everything, also what an interrupted benchmark has finished.")
@click.option("--dry-run", is_flag=True, help="Check every entry and list them; start nothing.")
@json_option
def bench(
    bench: Path,
    overrides: tuple[str, ...],
    only: tuple[str, ...],
    repeat: int | None,
    out: Path | None,
    keep_runs: bool,
    fresh: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Run every entry of BENCH (a file, or a bundled one such as `bench_layouts`), measure and compare them.

    Entries run one after the other as ordinary runs. Results are kept after each: an interrupted benchmark goes on
    where it stopped. Exit code 1 where an entry failed.
    """
    from ostrain.bench.load import load_bench

    turns = (f"repeat={repeat}",) if repeat is not None else ()
    loaded = load_bench(bench, (*overrides, *turns), only)
    if dry_run:
        return _listed(loaded, as_json)
    from cluster.bundle import build_bundle, hash_file
    from ostrain.bench.session import Session
    from ostrain.bench.store import default_folder, locked

    folder = out or default_folder(loaded.spec.name)
    bundle = build_bundle()
    with opened_store() as store, locked(folder):
        session = Session(
            loaded, store, folder, bundle, hash_file(bundle)[:12], opened_backend, resolved_secrets, _progress,
            say, keep_runs,
        )  # fmt: skip
        session.pick_up(fresh=fresh)
        interrupted = False
        try:
            session.run()
        except KeyboardInterrupt:
            interrupted = True
            say(f"interrupted; the same command goes on with what is missing (finished runs: {len(session.done)})")
        return _close(session, as_json, interrupted)


class _Quiet:
    """Progress where there is no terminal: only what is unusual."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, news: object) -> None:
        from ostrain.watch import Notice

        if isinstance(news, Notice):
            say(news.text)


def _progress(plan: LaunchPlan) -> Progress:
    from ostrain.progress import progress_for

    return progress_for(plan.steps, terminal=True) if sys.stderr.isatty() else _Quiet()


def _listed(bench: Bench, as_json: bool) -> int:
    """The entries, without running any."""
    from ostrain.bench.text import entry_line

    if as_json:
        emit_json(
            [
                {"label": case.label, "config": case.config, "samples": case.samples, "layout": case.plan.layout,
                 "nodes": [node.name for node in case.plan.nodes], "published": case.published}
                for case in bench.cases
            ]
        )  # fmt: skip
        return int(ExitCode.OK)
    for case in bench.cases:
        click.echo(entry_line(case))
    runs = len(bench.cases) * bench.spec.repeat
    say(f"{runs} runs of {bench.spec.steps} steps would start, one after the other; every entry was checked")
    return int(ExitCode.OK)


def _close(session: Session, as_json: bool, interrupted: bool) -> int:
    """Tables, report, exit code."""
    from ostrain.bench.text import comm_table, notes, steps_table

    rows = session.rows()
    if as_json:
        emit_json(session.to_dict())
    else:
        click.echo("\n" + steps_table(rows))
        if traffic := comm_table(rows):
            click.echo("\n" + traffic)
        click.echo("")
        for note in notes(rows, session.bench.baseline):
            click.echo(f"- {note}")
    if any(row.seconds is not None for row in rows):
        _report(session)
    say(f"results: {session.results.path}")
    if interrupted:
        return int(ExitCode.INTERRUPTED)
    return int(ExitCode.OK if all(row.state == "done" for row in rows) else ExitCode.RUN_FAILED)


def _report(session: Session) -> None:
    """``report.png`` and ``report.html``; the page is written without a picture where matplotlib is missing."""
    from ostrain.bench.page import write_page
    from ostrain.bench.picture import draw
    from ostrain.bench.text import title

    rows = session.rows()
    picture: Path | None = session.folder / "report.png"
    assert picture is not None
    try:
        draw(rows, title(session.bench), picture)
        say(f"picture: {picture}")
    except OstrainError as error:
        say(str(error))
        picture = None
    page = session.folder / "report.html"
    write_page(session.describe(), rows, picture, page)
    say(f"report: {page}")
