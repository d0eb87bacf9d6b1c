"""``ostrain schema``: the JSON schema of job files and inventories, for editors."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--inventory", "of_inventory", is_flag=True, help="The schema of inventory files instead of job files.")
def schema(of_inventory: bool) -> int:
    """Print the JSON schema of job files.

    With the YAML extension of most editors, a first line `# yaml-language-server: $schema=PATH` makes it check and
    complete a job while you type.
    """
    from ostrain.spec.schema import inventory_schema, job_schema

    document = inventory_schema() if of_inventory else job_schema()
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    return 0
