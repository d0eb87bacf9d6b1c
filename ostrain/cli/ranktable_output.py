"""What the commands of ``ostrain ranktable`` print and write."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ostrain.errors import OstrainError, SpecError
from ostrain.ranktable.check import Expected, Report, check
from ostrain.ranktable.document import Document, parse, read
from ostrain.ranktable.explain import headline
from ostrain.ranktable.fact_checks import Complaint
from ostrain.ranktable.findings import Finding, Findings, Placed, as_json, rendered
from ostrain.ranktable.text import table_text
from ostrain.spec.document import DocumentError
from ostrain.spec.problems import Mark, Source
from ostrain.states import ExitCode
from ostrain.talk import emit_json, say

SHOWN = 20


class _Place:
    """One place for everything: of a text that could not be parsed."""

    def __init__(self, mark: Mark) -> None:
        self._mark = mark

    def mark(self, path: tuple[str | int, ...]) -> Mark:
        return self._mark

    key_mark = mark


@dataclass
class Judged:
    """A file's report, and where its findings are."""

    name: str
    report: Report
    placed: Placed


def opened(file: str) -> Document:
    """A table that is to be used; what is no JSON ends the command (exit 2)."""
    try:
        return read(file)
    except DocumentError as error:
        problem = error.problems[0]
        raise SpecError(
            [problem.render()], what="no rank table can be read here", next_step="`ostrain ranktable check FILE`"
        ) from None


def judged(file: str, expected: Expected) -> Judged:
    """A table as ``check`` sees it: what is no JSON is a finding, too."""
    try:
        document = read(file)
    except DocumentError as error:
        problem = error.problems[0]
        findings = Findings()
        findings.add("json", (), problem.message)
        return Judged(problem.mark.source.name, Report(findings), _Place(problem.mark))
    report = check(document, expected)
    if file != "-" and not file.endswith(".json"):
        report.findings.add("file_name", (), f"the file's name {Path(file).name} does not end in .json")
    return Judged(document.name, report, document)


def finish_check(results: Sequence[Judged], *, strict: bool, as_json: bool) -> int:
    """Prints the verdicts; 0 when all tables are good, else 1."""
    bad = [result for result in results if not _passes(result, strict)]
    if as_json:
        emit_json([_as_dict(result, strict) for result in results])
    else:
        for result in results:
            for text in rendered(result.report.findings.all, result.placed):
                click.echo(text + "\n")
            click.echo(_verdict(result))
    return int(ExitCode.RUN_FAILED if bad else ExitCode.OK)


def _passes(result: Judged, strict: bool) -> bool:
    return result.report.good and not (strict and result.report.findings.of("warning"))


def _counts(result: Judged) -> str:
    words = []
    for level in ("error", "warning", "note"):
        number = len(result.report.findings.of(level))
        if number:
            words.append(f"{number} {level}{'s' * (number != 1)}")
    return ", ".join(words)


def _verdict(result: Judged) -> str:
    counts = _counts(result)
    if not result.report.good:
        return f"{result.name}: {_why_bad(result.report)} ({counts})"
    return f"{result.name}: good, {headline(result.report)}" + (f" ({counts})" if counts else "")


def _why_bad(report: Report) -> str:
    codes = {code for finding in report.findings.errors for code in finding.rule.codes}
    if codes & {"EI0004", "EI0014"}:
        return "HCCL would refuse it"
    return "its ranks would not meet" if codes else "not as asked for"


def _as_dict(result: Judged, strict: bool) -> dict[str, Any]:
    report = result.report
    return {
        "file": result.name,
        "good": _passes(result, strict),
        "version": report.kind,
        "servers": report.nodes,
        "ranks": report.devices,
        "findings": [as_json(finding, result.placed) for finding in report.findings.all],
    }


def refuse_inputs(inputs: Sequence[tuple[Placed, Sequence[Finding]]], code: ExitCode = ExitCode.USAGE) -> None:
    """Ends the command where tables have errors: nothing is written of them."""
    texts = [text for placed, findings in inputs for text in rendered(list(findings), placed)]
    count = sum(len(findings) for _, findings in inputs)
    if texts:
        error = SpecError(
            texts, what=f"{count} problem{'s' * (count != 1)}; HCCL would refuse it",
            next_step="correct the places above; `ostrain ranktable check` tells all",
        )  # fmt: skip
        error.exit_code = code
        raise error


def show_complaints(complaints: Sequence[Complaint]) -> None:
    """Errors first, of each level the first few."""
    for level in ("error", "warning", "note"):
        of_level = [complaint for complaint in complaints if complaint.level == level]
        for complaint in of_level[:SHOWN]:
            say(str(complaint))
        if len(of_level) > SHOWN:
            say(f"… and {len(of_level) - SHOWN} more {level}s; --json lists all")


def show_progress(done: int, total: int) -> None:
    """One line that counts the nodes, where somebody watches."""
    if total > 1 and sys.stderr.isatty():
        click.echo(f"\rasked {done} of {total} nodes", nl=done == total, err=True)


def unreachable(errors: Sequence[OstrainError]) -> int:
    """Every node that could not be asked, and the gravest exit code of theirs."""
    for error in errors:
        say(str(error))
    codes = [int(error.exit_code) for error in errors]
    return int(ExitCode.UNREACHABLE) if ExitCode.UNREACHABLE in codes else max(codes)


def write_table(data: dict[str, Any], output: str, *, force: bool, as_json: bool) -> str:
    """Writes the table whole or not at all; the name it has. ``-``: to standard output."""
    from models.files import write_atomic

    text = table_text(data)
    parse(Source(output, text))  # never a file that cannot be read back
    if output == "-":
        if not as_json:
            click.echo(text)
        return "-"
    path = Path(output)
    if path.suffix != ".json":
        raise OstrainError(
            f"the file's name has to end in .json: {output}", why="HCCL refuses others (EI0004)",
            next_step=f"-o {output}.json", exit_code=ExitCode.USAGE,
        )  # fmt: skip
    if path.exists() and not force:
        raise OstrainError(
            f"{output} exists", next_step="name another file with -o, or add --force", exit_code=ExitCode.USAGE
        )
    try:
        write_atomic(path, text.encode())
    except OSError as error:
        raise OstrainError(
            f"{output} cannot be written", why=error.strerror or str(error), next_step="name another file with -o",
            exit_code=ExitCode.USAGE,
        ) from None  # fmt: skip
    say(f"written: {output}")
    return output
