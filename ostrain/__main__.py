"""Entry point: runs the command line and turns every error into what a person can use."""

from __future__ import annotations

import os
import sys
import traceback

import click

from ostrain.errors import OstrainError
from ostrain.states import ExitCode


def _verbosity(arguments: list[str]) -> int:
    return sum(2 if word == "-vv" else 1 for word in arguments if word in ("-v", "-vv", "--verbose"))


def main() -> None:
    """Run ``ostrain``; exits with one of ``ostrain.states.ExitCode``."""
    from ostrain.cli import cli

    verbose = _verbosity(sys.argv[1:])
    try:
        code = cli.main(prog_name="ostrain", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        code = ExitCode.INTERRUPTED
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        code = ExitCode.INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except OstrainError as error:
        if verbose >= 2:
            traceback.print_exc()
        click.echo(str(error), err=True)
        code = error.exit_code
    except BrokenPipeError:
        # The reader of our output is gone (`| head`); there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitCode.OK
    except Exception as error:
        if verbose >= 2:
            traceback.print_exc()
        click.echo(_fault_text(error), err=True)
        code = ExitCode.INTERNAL
    sys.exit(int(code) if isinstance(code, int) else 0)


def _fault_text(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return str(
        OstrainError(
            "a fault in ostrain itself",
            where=f"{os.path.basename(place.filename)}:{place.lineno} in {place.name}",
            why=f"{type(error).__name__}: {error}",
            next_step="run the command again with -vv and report what it prints",
        )
    )


if __name__ == "__main__":
    main()
