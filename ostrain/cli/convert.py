"""``ostrain convert``: weights of PyTorch and MindSpore into safetensors, and the other way, in a child process."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from ostrain.cli.common import json_option
from ostrain.errors import OstrainError
from ostrain.states import ExitCode

KINDS = ("stdit", "stdit2", "stdit3", "pixart", "vae2d", "vae", "t5")
# The child's exit code for wrong options.
_USAGE = (2, 64)


@click.command()
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("target", metavar="DST", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--kind", type=click.Choice(KINDS), help="What the weights are of [default: what their names tell].")
@click.option("--to", type=click.Choice(("pytorch", "mindspore")), default="pytorch", show_default=True,
              help="Whose names to write.")  # fmt: skip
@click.option("--take", help="Part of the file to take [default: ema, state_dict or model, the first that is there].")
@click.option("--dtype", type=click.Choice(("keep", "fp32", "fp16", "bf16")), default="keep", show_default=True)
@click.option("--allow-partial", is_flag=True, help="Write what is there, although the weights are not whole.")
@click.option("--force", is_flag=True, help="Replace DST if it exists.")
@click.option("--all", "everything", is_flag=True, help="Name every tensor in the report.")
@json_option
def convert(
    source: Path,
    target: Path,
    kind: str | None,
    to: str,
    take: str | None,
    dtype: str,
    allow_partial: bool,
    force: bool,
    everything: bool,
    as_json: bool,
) -> int:
    """Read weights and write one file of them with the names of the original PyTorch models.

    SRC is safetensors, .pth, .pt or .bin of PyTorch (which is not needed; pickles cannot run anything), .ckpt of
    MindSpore, an index of shards, or a folder of Hugging Face. DST ends in .safetensors; with `--to mindspore` it holds
    the reference's names and may end in .ckpt. The report tells what matched, was renamed, is missing or unused.
    """
    if find_spec("numpy") is None:
        raise OstrainError(
            "this command needs numpy, which is not installed here",
            next_step="pip install 'ostrain[models]', or run it on a node", exit_code=ExitCode.USAGE,
        )  # fmt: skip
    command = [sys.executable, "-m", "models.convert", str(source), str(target), "--to", to, "--dtype", dtype]
    command += [part for name, value in (("--kind", kind), ("--take", take)) if value for part in (name, value)]
    flags = {"--allow-partial": allow_partial, "--force": force, "--all": everything, "--json": as_json}
    command += [name for name, wanted in flags.items() if wanted]
    # The child finds the package where this process did, installed or not.
    spec = find_spec("models")
    home = str(Path(spec.origin).parents[1]) if spec is not None and spec.origin else ""
    path = os.pathsep.join(part for part in (home, os.environ.get("PYTHONPATH", "")) if part)
    code = subprocess.run(command, check=False, env=os.environ | {"PYTHONPATH": path}).returncode
    if code == 0:
        return int(ExitCode.OK)
    return int(ExitCode.USAGE if code in _USAGE else ExitCode.RUN_FAILED)
