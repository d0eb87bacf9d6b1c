"""``ostrain ranktable``: HCCL's rank tables made, checked, merged, converted, explained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ostrain.cli.common import json_option
from ostrain.cli.ranktable_output import (
    finish_check,
    judged,
    opened,
    refuse_inputs,
    show_complaints,
    show_progress,
    unreachable,
    write_table,
)
from ostrain.errors import OstrainError
from ostrain.states import ExitCode
from ostrain.talk import emit_json, say, table

if TYPE_CHECKING:
    from ostrain.ranktable.nodes import Gathered
    from ostrain.ranktable.products import Product

F = TypeVar("F", bound=Callable[..., Any])
_VERSIONS = ("1.0", "1.2", "2.0")


@click.group()
def ranktable() -> None:
    """Make, check, merge, convert and explain rank tables (the files of RANK_TABLE_FILE).

    Exit codes: 0 good, 1 HCCL would refuse the table, 2 the command or its input is wrong, 3 a node lacks something,
    4 a node cannot be reached.
    """


def _product(ctx: click.Context, param: click.Parameter, value: str | None) -> Product | None:
    if value is None:
        return None
    from ostrain.ranktable.products import product

    return product(value)


def _facts_options(function: F) -> F:
    files = "Files instead of nodes: a transcript or hccn.conf a node (docs/ranktables.md)."
    function = click.option("--facts", type=click.Path(path_type=Path), metavar="PATH", help=files)(function)
    nodes = "Ask the nodes of this inventory; `local` is this machine."
    return click.option("--cluster", metavar="NAME", help=nodes)(function)


def _output_options(function: F) -> F:
    function = click.option("--force", is_flag=True, help="Replace the file if it exists.")(function)
    return click.option("-o", "--output", metavar="FILE", help="Write here; - is standard output [default: named as "
                        "hccl_tools.py and merge_hccl.py do, in this folder].")(function)  # fmt: skip


product_option = click.option("--product", callback=_product, metavar="NAME", help="910A, 910B, A3 or 950.")


def _gathered(
    cluster: str | None, facts: Path | None, *, count: int | None = None, ipv6: bool = False, server_id: str = ""
) -> Gathered | None:
    """Facts of nodes from where the options say; None where they say nothing."""
    from ostrain.ranktable.nodes import from_cluster, from_files

    if cluster is not None and facts is not None:
        raise OstrainError("--cluster and --facts at once", next_step="give one", exit_code=ExitCode.USAGE)
    if facts is not None:
        return from_files(facts, server_id, count)
    if cluster is None:
        return None
    return from_cluster(cluster, count=count, ipv6=ipv6, server_id=server_id, progress=show_progress)


@ranktable.command()
@_facts_options
@click.option("--nodes", type=click.IntRange(min=1), metavar="N", help="Only the first N nodes.")
@click.option("--devices", metavar="LIST", help="0-7, 0,1,4,5 or [0,8): devices of every node [default: all].")
@click.option("--visible-devices", metavar="LIST", help="Physical ids behind --devices, as for hccl_tools.py.")
@click.option("--server-ip", default="", metavar="ADDRESS", help="The server's name, where there is one node.")
@click.option("--version", type=click.Choice(_VERSIONS), help="[default: by the product]")
@product_option
@click.option("--ipv6", is_flag=True, help="IPv6 addresses instead of IPv4.")
@click.option("--backup", is_flag=True, help="A3: the other die's card as backup_device_ip.")
@click.option("--save-facts", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Keep what the nodes answered, for --facts.")  # fmt: skip
@_output_options
@json_option
def make(
    cluster: str | None, facts: Path | None, nodes: int | None, devices: str | None, visible_devices: str | None,
    server_ip: str, version: str | None, product: Product | None, ipv6: bool, backup: bool, save_facts: Path | None,
    output: str | None, force: bool, as_json: bool,
) -> int:  # fmt: skip
    """Write a rank table of this machine, of an inventory's nodes, or of files with their facts."""
    from ostrain.ranktable.devices import chosen_devices
    from ostrain.ranktable.make import Wanted, make
    from ostrain.ranktable.nodes import save
    from ostrain.ranktable.text import file_name

    logical, physical = chosen_devices(devices, visible_devices)
    source = cluster if cluster is not None or facts is not None else "local"
    found = _gathered(source, facts, count=nodes, ipv6=ipv6, server_id=server_ip)
    assert found is not None
    if save_facts is not None:
        save(save_facts, found.transcripts)
    if found.errors:
        return unreachable(found.errors)
    wanted = Wanted(version or "", product, physical, 6 if ipv6 else 4, backup)
    made = make(found.facts, wanted, found.own if physical is None else None)
    if not as_json:
        show_complaints(made.complaints)
    if made.data is None:
        if as_json:
            emit_json({"file": None, "complaints": [complaint.to_dict() for complaint in made.complaints]})
        raise OstrainError(
            "no rank table was written", why="see the errors above" if not as_json else "see `complaints`",
            next_step="mend the nodes, or leave them out", exit_code=ExitCode.PREFLIGHT,
        )  # fmt: skip
    name = write_table(made.data, output or file_name(made.data, logical), force=force, as_json=as_json)
    if as_json:
        complaints = [complaint.to_dict() for complaint in made.complaints]
        emit_json({"file": name, "table": made.data, "complaints": complaints})
    return int(ExitCode.OK)


@ranktable.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@product_option
@click.option("--devices-per-node", type=click.IntRange(min=1, max=64), metavar="N", help="Servers have N devices.")
@click.option("--netmask", metavar="MASK", help="255.255.255.0 or 24: find devices in wrong subnets.")
@_facts_options
@click.option("--strict", is_flag=True, help="Warnings count as errors.")
@json_option
def check(
    files: tuple[str, ...], product: Product | None, devices_per_node: int | None, netmask: str | None,
    cluster: str | None, facts: Path | None, strict: bool, as_json: bool,
) -> int:  # fmt: skip
    """Tell what HCCL would refuse in a table, what is slow, and what is not so on the nodes. - is standard input."""
    from ostrain.ranktable.against import check_against
    from ostrain.ranktable.check import Expected
    from ostrain.ranktable.subnets import prefix_of

    expected = Expected(product, devices_per_node, prefix_of(netmask) if netmask is not None else None)
    found = _gathered(cluster, facts)
    if found is not None and found.errors:
        return unreachable(found.errors)
    results = []
    for file in files:
        result = judged(file, expected)
        if found is not None and result.report.servers:
            check_against(result.report, found.facts)
        elif found is not None:
            say(f"note: {result.name} is not compared with the nodes; only versions 1.0 and 1.2 can be")
        results.append(result)
    return finish_check(results, strict=strict, as_json=as_json)


@ranktable.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@_output_options
@json_option
def merge(files: tuple[str, ...], output: str | None, force: bool, as_json: bool) -> int:
    """Make one table of several, ranks numbered anew, servers in the order of the files."""
    from ostrain.ranktable.merge import dropped_keys, input_errors, merge
    from ostrain.ranktable.text import file_name

    documents = [opened(file) for file in files]
    refuse_inputs([(document, input_errors(document)) for document in documents])
    merged = merge(documents)
    refuse_inputs([(merged, merged.report.findings.errors)])
    for key in dropped_keys(documents):
        say(f"note: {key!r} is left out: a merged table has none")
    name = write_table(merged.data, output or file_name(merged.data), force=force, as_json=as_json)
    if as_json:
        emit_json({"file": name, "table": merged.data})
    return int(ExitCode.OK)


@ranktable.command()
@click.argument("file")
@click.option("--to", "version", type=click.Choice(_VERSIONS), required=True, help="The version to be.")
@_facts_options
@_output_options
@json_option
def convert(
    file: str, version: str, cluster: str | None, facts: Path | None, output: str | None, force: bool, as_json: bool
) -> int:
    """Write a table in another version; of the old ModelArts format, too. Numbers without quotes are mended.

    From 1.0 to 1.2 the nodes are asked for their places in super pods: say --cluster or --facts.
    """
    from ostrain.ranktable.check import check_data
    from ostrain.ranktable.convert import convert as converted
    from ostrain.ranktable.convert import stringified
    from ostrain.ranktable.text import file_name

    document = opened(file)
    data = stringified(document.data)
    refuse_inputs([(document, check_data(data).findings.errors)])
    found = _gathered(cluster, facts)
    if found is not None and found.errors:
        return unreachable(found.errors)
    result = converted(data, version, found.facts if found else ())
    errors = check_data(result).findings.errors
    if errors:
        raise OstrainError(
            f"as version {version} HCCL would refuse it", why="; ".join(error.message for error in errors[:3]),
            next_step="make the table from the nodes: `ostrain ranktable make`", exit_code=ExitCode.USAGE,
        )  # fmt: skip
    name = write_table(result, output or file_name(result), force=force, as_json=as_json)
    if as_json:
        emit_json({"file": name, "table": result})
    return int(ExitCode.OK)


@ranktable.command()
@click.argument("file", required=False)
@click.option("--ranks", is_flag=True, help="A line a rank.")
@click.option("--rules", is_flag=True, help="Every rule of `check` instead, with HCCL's error codes.")
@json_option
def explain(file: str | None, ranks: bool, rules: bool, as_json: bool) -> int:
    """Say in words what a table says: who is where, how ranks meet, what their processes are started with."""
    if rules:
        return _explain_rules(as_json)
    if file is None:
        raise click.UsageError("FILE is missing (or --rules).")
    from ostrain.ranktable import explain as words
    from ostrain.ranktable.check import check as checked

    document = opened(file)
    report = checked(document)
    if as_json:
        emit_json({"file": document.name, **words.describe(report, document.data)})
        return int(ExitCode.OK if report.good else ExitCode.RUN_FAILED)
    refuse = [(document, report.findings.errors)]
    if report.kind is None:
        refuse_inputs(refuse, ExitCode.RUN_FAILED)
    click.echo(f"{document.name}: {words.headline(report)}\n")
    if ranks:
        headers: tuple[str, ...] = ("RANK", "SERVER", "DEVICE", "ADDRESS")
        lines: list[tuple[object, ...]] = [
            ("-" if row.rank is None else row.rank, row.server, row.device, row.address or "-")
            for row in words.rows(report)
        ]
    else:
        headers = ("SERVER", "SUPER POD", "RANKS", "DEVICES", "ADDRESSES")
        lines = [(server, pod or "-", *rest) for server, pod, *rest in words.summary(report)]
    click.echo(table(lines, headers))
    click.echo("\nhow ranks meet\n" + "\n".join(f"  {line}" for line in words.meeting(report)))
    if start := words.starting(report):
        click.echo("\nwhat a process is started with (rank-table start)\n" + "\n".join(f"  {line}" for line in start))
    if unread := words.not_read(document.data):
        click.echo(f"\nHCCL does not read {', '.join(unread)}")
    refuse_inputs(refuse, ExitCode.RUN_FAILED)
    return int(ExitCode.OK)


def _explain_rules(as_json: bool) -> int:
    from ostrain.ranktable.rules import RULES

    if as_json:
        emit_json([{**vars(rule), "codes": list(rule.codes)} for rule in RULES.values()])
    else:
        lines = [(r.name, r.level, ", ".join(r.codes) or "-", r.meaning) for r in RULES.values()]
        click.echo(table(lines, ("RULE", "LEVEL", "HCCL", "WHAT HOLDS")))
    return int(ExitCode.OK)
