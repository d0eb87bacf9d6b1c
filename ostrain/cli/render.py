"""``ostrain render``: everything a job would put on its nodes, without touching one."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("job", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a key of the job; may be repeated.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Write DIR/<node>/… instead.")
@click.option(
    "--ma-cli", type=click.Path(path_type=Path), metavar="DIR", help="ModelArts: DIR/ma-cli.yaml and its code."
)
@click.option("--json", "as_json", is_flag=True, help="Print the whole launch plan as JSON.")
def render(job: Path, overrides: tuple[str, ...], output: Path | None, ma_cli: Path | None, as_json: bool) -> int:
    """Print the files and commands JOB compiles to: a file, or the name of a bundled job such as `quickstart`.

    No node is contacted. What it prints is what `ostrain submit` puts on the nodes.
    """
    from ostrain.compiler import compile_plan
    from ostrain.render import plan_text, write_plan
    from ostrain.spec import load_job

    plan = compile_plan(load_job(job, overrides))
    if output is not None:
        written = write_plan(plan, output)
        click.echo(f"{len(written)} files of {len(plan.nodes)} nodes in {output}", err=True)
    if ma_cli is not None:
        from ostrain.service_render import write_ma_cli

        click.echo(f"{len(write_ma_cli(plan, ma_cli))} files in {ma_cli}", err=True)
    if as_json:
        click.echo(plan.to_json())
    elif output is None and ma_cli is None:
        click.echo(plan_text(plan), nl=False)
    return 0
