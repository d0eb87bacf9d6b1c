"""Values that break whatever is not quoted, and a worker that writes down what arrived."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.backend import Backend, RunRef
from ostrain.plan import NodeAccess, NodePlan, PlanFile
from tests.cluster.toys import good, make_plan, wait_state

VALUES = [
    "two words",
    'it\'s "quoted"',
    "$(touch /tmp/ostrain-owned) `id` $HOME ${x}",
    "line\nbreak\ttab\r",
    "漢字 😀 é",
    "back\\slash \\n *?[a] ~ ! # % & ; | < >",
    "-rf --",
    "",
    " leading and trailing ",
    "not utf-8: \udcff\udc80",
]
NAMES = ["with space", "quote'\"", "$(id)", "new\nline", "漢字", "-dash", "glob*[x]?", "not-utf8-\udcff"]

_RECORD = """
import json, os, sys
def read(path):
    return open(path, newline="", encoding="utf-8", errors="surrogateescape").read()
seen = {"argv": sys.argv[1:], "env": {k: v for k, v in os.environ.items() if k.startswith("HOSTILE_")}}
for folder in ("in", "files/data"):
    seen[folder] = {name: read(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}
json.dump(seen, open("seen.json", "w"))
"""


def check_arrival(backend: Backend, name: str, access: NodeAccess, folder: Path, bundle: Path) -> None:
    """Start a command with hostile arguments, environment, files and sources; everything arrives byte for byte."""
    source = folder / "source"
    source.mkdir()
    for number, file in enumerate(NAMES):
        (source / file).write_text(str(number))
    files = tuple(PlanFile("in/" + file, VALUES[number]) for number, file in enumerate(NAMES))
    command = ("python", "record.py", *VALUES)
    node = NodePlan(name, 0, access, "127.0.0.1", (), (), command, (PlanFile("record.py", _RECORD), *files))
    run = RunRef("hostile", make_plan(backend.name, [node], sources={"data": str(source)}))
    env = {f"HOSTILE_{number}": value for number, value in enumerate(VALUES)}
    good(backend.stage(run, bundle))
    good(backend.start(run, 1, env))
    wait_state(backend, run, "SUCCEEDED")
    seen = json.loads(backend.fetch(run, name, "seen.json"))
    assert seen["argv"] == VALUES
    assert seen["env"] == env
    assert seen["files/data"] == {file: str(number) for number, file in enumerate(NAMES)}
    assert seen["in"] == {file: VALUES[number] for number, file in enumerate(NAMES)}
    assert not Path("/tmp/ostrain-owned").exists()
    good(backend.remove(run))
