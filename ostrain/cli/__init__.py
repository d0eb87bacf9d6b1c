"""The command line. One file a command; a command's file is imported only when it is used."""

from __future__ import annotations

import importlib

import click

from ostrain import __version__

# name -> (module, line in the help). Kept here so that `ostrain --help` imports no command.
COMMANDS = {
    "submit": ("ostrain.cli.submit", "Check the nodes, then start a run of JOB."),
    "check": ("ostrain.cli.check", "Look at every node that JOB would run on."),
    "hosts": ("ostrain.cli.hosts", "Pin the host keys of a cluster, and list them."),
    "ps": ("ostrain.cli.ps", "List runs."),
    "status": ("ostrain.cli.status", "Tell the state of a run, and the first fault where it failed."),
    "top": ("ostrain.cli.top", "Watch nodes and ranks of a run live."),
    "report": ("ostrain.cli.report", "Write one HTML file about a run: curves, ranks, checkpoints, timeline."),
    "logs": ("ostrain.cli.logs", "Show or follow the logs of all nodes."),
    "stuck": ("ostrain.cli.stuck", "Ask every rank where it is, and name the odd one."),
    "why": ("ostrain.cli.why", "Name the first fault of a run, with what followed, and explain it."),
    "bundle": ("ostrain.cli.bundle", "Pack a run for a support ticket, with its secrets masked."),
    "cancel": ("ostrain.cli.cancel", "End every process of a run, and only of it."),
    "resume": ("ostrain.cli.resume", "Start a run that has ended again, from its newest checkpoint."),
    "supervise": ("ostrain.cli.supervise", "Watch a run and start it again when it fails; adopt one."),
    "sample": ("ostrain.cli.sample", "Sample images and videos from prompts on this machine."),
    "eval": ("ostrain.cli.evaluate", "Measure an autoencoder: PSNR, SSIM and LPIPS of its reconstructions."),
    "data": ("ostrain.cli.data", "Make, check and count annotations; encode captions and clips."),
    "ckpt": ("ostrain.cli.ckpt", "List, verify, export, reshard and compare checkpoints."),
    "convert": ("ostrain.cli.convert", "Turn weights of PyTorch and MindSpore into safetensors, and back."),
    "rm": ("ostrain.cli.rm", "Delete a run: its directories, its checkpoints, its entry."),
    "ranktable": ("ostrain.cli.ranktable", "Make, check, merge, convert and explain HCCL's rank tables."),
    "render": ("ostrain.cli.render", "Print the files and commands a job compiles to."),
    "drill": ("ostrain.cli.drill", "Rehearse faults on a job: break something, see whether it recovers."),
    "bench": ("ostrain.cli.bench", "Run a matrix of layouts, measure and compare them."),
    "schema": ("ostrain.cli.schema", "Print the JSON schema of job files, for editors."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports them on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1, cutoff=0.5)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            ctx.fail(f"No such command '{args[0]}'.{hint}")
        return super().resolve_command(ctx, args)


EPILOG = (
    "Exit codes: 0 ok, 1 run failed, 2 usage, 3 preflight, 4 node unreachable, 5 cancelled, 6 hung, 7 survivors, "
    "70 fault in ostrain, 130 interrupted."
)


@click.command(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ostrain")
@click.option("-v", "--verbose", count=True, help="More talk; -vv shows tracebacks.")
def cli(verbose: int) -> None:
    """From one YAML file to a running, watched, restartable Open-Sora training run on Ascend NPUs.

    RUN is a run's id, the start of one, a job's name (its newest run) or `last`.
    """
