"""What goes into the file: (path, text) of everything known about a run, not masked yet."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from cluster.backend import Backend, NodeError, RunRef
from ostrain import __version__
from ostrain.errors import OstrainError
from ostrain.store import Run
from ostrain.stuck import StuckReport, look
from ostrain.why.analysis import Analysis
from ostrain.why.evidence import Evidence

# Files of a run directory beyond those that `ostrain why` reads. Checkpoints, samples and pushed files stay.
MORE = (
    "logs/attempt-*/*.log",
    "workers/attempt-*/*.json",
    "faults/attempt-*/*.json",
    "stacks/attempt-*/*.txt",
    "agent/state.json",
    "agent/staged.json",
    "agent/cancel",
    "launch.sh",
    "env.sh",
    "*.yaml",
    "*.json",
    "checkpoints/step-*/manifest.json",
)
_PACKAGES = ("mindspore", "numpy", "paramiko", "fabric", "pydantic", "click", "rich", "jinja2", "safetensors")


def contents(
    run: Run, analysis: Analysis, stuck: StuckReport | None, versions: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    """Everything, path by path, the shortest way to the fault first."""
    yield "why.txt", analysis.text(shown=200, wide=True) + "\n"
    yield "why.json", _json(analysis.as_dict())
    yield "status.json", _json(analysis.status.as_dict())
    if stuck is not None:
        yield "stuck.txt", stuck.text + "\n"
        yield "stuck.json", _json(stuck.as_dict())
    yield "versions.json", _json(versions)
    yield from _plan(run)
    yield from _job(run)
    if analysis.evidence.journal:
        yield "supervisor.jsonl", "".join(json.dumps(entry) + "\n" for entry in analysis.evidence.journal)
    yield from _nodes(analysis.evidence)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, default=str) + "\n"


def _plan(run: Run) -> Iterator[tuple[str, str]]:
    """The plan without its files, and the files as they were rendered: most are the same on all nodes."""
    plan = run.plan
    nodes = [
        {**asdict(node), "files": [{"path": file.path, "mode": oct(file.mode)} for file in node.files]}
        for node in (*plan.nodes, *plan.spares)
    ]
    data = {**json.loads(plan.to_json()), "nodes": nodes, "spares": [node.name for node in plan.spares]}
    for key in ("shared", "job"):
        data.pop(key, None)
    yield "plan.json", _json(data)
    seen: set[tuple[str, str]] = set()
    for node in plan.nodes:
        for file in node.files:
            if (file.path, file.text) not in seen:
                seen.add((file.path, file.text))
                yield f"rendered/{node.name}/{file.path}", file.text


def _job(run: Run) -> Iterator[tuple[str, str]]:
    """The job file as it stands now, and job and inventory as they were resolved, where the run keeps them."""
    path = Path(run.job_path)
    try:
        yield f"job/{path.name}", path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        yield "job/README.txt", f"the job file {run.job_path} cannot be read any more: {error.strerror}\n"
    for key in ("job", "inventory"):
        if key in run.plan.job:
            yield f"job/{key}.json", _pretty(str(run.plan.job[key]))


def _pretty(text: str) -> str:
    try:
        return _json(json.loads(text))
    except ValueError:
        return text


def _nodes(evidence: Evidence) -> Iterator[tuple[str, str]]:
    for node, files in sorted(evidence.files.items()):
        for path, log in sorted(files.items()):
            head = f"[the first {log.cut} bytes are left out]\n" if log.cut and path.endswith((".log", ".txt")) else ""
            yield f"nodes/{node}/{path}", head + log.text
    for node, plogs in sorted(evidence.plogs.items()):
        for file in plogs:
            part = "run" if "/run/" in file["path"] else "debug"
            yield f"nodes/{node}/plog/{part}/{file['path'].rpartition('/')[2]}", str(file.get("text") or "")
    for node, lines in sorted(evidence.kernel.items()):
        if lines:
            yield f"nodes/{node}/kernel.jsonl", "".join(json.dumps(line) + "\n" for line in lines)


def versions_of(backend: Backend, run: Run, *, timeout: float = 30.0) -> dict[str, Any]:
    """Versions here and on the nodes. What a node refuses to tell is told as that."""
    here: dict[str, Any] = {
        "ostrain": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }
    try:
        answers = backend.probe(run.plan, timeout=timeout)
    except OstrainError as error:
        return {"here": here, "nodes": {}, "error": error.what}
    nodes = {name: {"error": str(one)} if isinstance(one, NodeError) else one for name, one in answers.items()}
    return {"here": here, "nodes": nodes}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def stacks_now(backend: Backend, run: Run) -> StuckReport | None:
    """Every rank's stack at this moment; None for a run that has ended."""
    return None if run.settled else look(backend, RunRef(run.run_id, run.plan))
