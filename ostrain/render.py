"""A LaunchPlan as text for people, and as files in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ostrain.errors import OstrainError
from ostrain.plan import LaunchPlan, NodePlan

MARKER = ".ostrain-render"


def plan_text(plan: LaunchPlan) -> str:
    """Every file of every node under a heading; files that several nodes share stand there once."""
    parts = [_summary(plan)]
    for path, mode, nodes, text in distinct_files(plan):
        where = "every node" if len(nodes) == len(plan.nodes) and len(nodes) > 1 else ", ".join(nodes)
        title = f"═══ {path} (mode {mode:04o}) on {where} "
        parts.append(f"{title}{'═' * max(3, 100 - len(title))}\n{text.rstrip()}\n")
    if plan.backend == "modelarts":
        from ostrain.service_render import service_texts

        parts += [
            f"═══ {title} {'═' * max(3, 95 - len(title))}\n{text.rstrip()}\n" for title, text in service_texts(plan)
        ]
    return "\n".join(parts)


def distinct_files(plan: LaunchPlan) -> Iterator[tuple[str, int, list[str], str]]:
    """(path, mode, nodes, text) of every different file, in the order of the first node that has it."""
    groups: dict[tuple[str, int, str], list[str]] = {}
    for node in plan.nodes:
        for file in node.files:
            groups.setdefault((file.path, file.mode, file.text), []).append(node.name)
    for (path, mode, text), nodes in groups.items():
        yield path, mode, nodes, text


def write_plan(plan: LaunchPlan, folder: Path) -> list[Path]:
    """Write ``<folder>/<node>/<file>`` with the plan's modes. A folder that is neither empty nor from here is refused.

    Returns the files written. What an earlier render of other nodes left there is removed.
    """
    try:
        if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).is_file():
            raise OstrainError(
                f"{folder} holds files that `ostrain render` did not write",
                next_step="name a new or empty folder with -o",
                exit_code=2,
            )
        folder.mkdir(parents=True, exist_ok=True)
        _remove_old(folder)
        written = [path for node in plan.nodes for path in _write_node(node, folder / node.name)]
        names = "".join(f"{path.relative_to(folder)}\n" for path in written)
        (folder / MARKER).write_text(names, encoding="utf-8")
    except OSError as error:
        raise OstrainError(
            f"cannot write to {folder}", why=str(error.strerror or error), next_step="name another folder with -o"
        ) from None
    return written


def _write_node(node: NodePlan, folder: Path) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    for file in node.files:
        path = folder / file.path
        path.touch(mode=0o600)
        path.chmod(file.mode)
        path.write_bytes(file.text.encode("utf-8"))
        yield path


def _remove_old(folder: Path) -> None:
    """Remove exactly what the marker lists: a node that left the job must not stay in its render."""
    marker = folder / MARKER
    if not marker.is_file():
        return
    for name in marker.read_text(encoding="utf-8").splitlines():
        below = Path(name)
        if below.is_absolute() or ".." in below.parts:
            continue
        path = folder / below
        path.unlink(missing_ok=True)
        if path.parent != folder and path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()


def _work(plan: LaunchPlan) -> str:
    steps = f"{plan.steps} steps" if plan.steps else ""
    return steps if steps and plan.task == "train" else f"{plan.task} {steps}".rstrip()


def _summary(plan: LaunchPlan) -> str:
    layout = plan.layout
    degrees = f"dp {layout['dp']} x sp {layout['sp']}" + (f" ({layout['sp_kind']})" if layout["sp"] > 1 else "")
    port = plan.master_port or "a free port, picked at each start"
    lines = [
        f"job       {plan.name}: {_work(plan)} on {plan.device}, {plan.launcher}, backend {plan.backend}",
        f"layout    world {plan.world} = {degrees}, zero {layout['zero']}",
        f"scheduler {plan.master_address}, {port}",
    ]
    for node in plan.nodes[:16]:
        who = f"{node.access.user}@" if node.access.user else ""
        ranks = f"{node.ranks[0]}-{node.ranks[-1]}" if len(node.ranks) > 1 else str(node.ranks[0])
        devices = ",".join(map(str, node.devices)) if plan.device == "Ascend" else "CPU"
        lines.append(f"node      {node.name} ({who}{node.access.host}): ranks {ranks}, devices {devices}")
    if len(plan.nodes) > 16:
        lines.append(f"          … and {len(plan.nodes) - 16} more nodes")
    lines += [f"files     files/{name} <- {source}" for name, source in plan.sources.items()]
    lines += [f"secret    {variable} <- {secret}" for variable, secret in plan.secrets.items()]
    return "\n".join(lines) + "\n"
