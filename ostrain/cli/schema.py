"""``ostrain schema``: the JSON schema of job files, inventories and benchmarks, for editors."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--inventory", "of_inventory", is_flag=True, help="The schema of inventory files instead of job files.")
@click.option("--bench", "of_bench", is_flag=True, help="The schema of benchmark files instead of job files.")
@click.option("--markdown", is_flag=True, help="Every key of every task as tables, for people (docs/keys.md).")
def schema(of_inventory: bool, of_bench: bool, markdown: bool) -> int:
    """Print the JSON schema of job files.

    With the YAML extension of most editors, a first line `# yaml-language-server: $schema=PATH` makes it check and
    complete a job while you type.
    """
    from ostrain.spec.schema import inventory_schema, job_schema

    if markdown:
        from ostrain.spec.reference import reference

        click.echo(reference(), nl=False)
        return 0

    if of_bench:
        from ostrain.bench.spec import bench_schema

        document = bench_schema()
    else:
        document = inventory_schema() if of_inventory else job_schema()
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    return 0
