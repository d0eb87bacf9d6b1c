"""``ostrain schema``: the JSON schema of job files, inventories and benchmarks, for editors."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--inventory", "of_inventory", is_flag=True, help="The schema of inventory files instead of job files.")
@click.option("--bench", "of_bench", is_flag=True, help="The schema of benchmark files instead of job files.")
def schema(of_inventory: bool, of_bench: bool) -> int:
    """Print the JSON schema of job files.

    With the YAML extension of most editors, a first line `# yaml-language-server: $schema=PATH` makes it check and
    complete a job while you type.
    """
    from ostrain.spec.schema import inventory_schema, job_schema

    if of_bench:
        from ostrain.bench.spec import bench_schema

        document = bench_schema()
    else:
        document = inventory_schema() if of_inventory else job_schema()
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    return 0
