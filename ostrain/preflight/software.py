"""What the workers will run with: set-up scripts, Python, MindSpore, modules, programs; the same on every node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ostrain.preflight.situation import Situation, odd_ones
from ostrain.preflight.verdict import Verdict, fail, ok, warn

LEAST_PYTHON, BEYOND_PYTHON = (3, 10), (3, 13)
INSTALL = "install it there, or name another `python` in the inventory"


def _ready(situation: Situation) -> dict[str, dict[str, Any]]:
    """Nodes whose set-up worked: the others have one line of their own, `setup`."""
    return {name: facts for name, facts in situation.told("software").items() if not facts["problem"]}


def setup(situation: Situation) -> Iterator[Verdict]:
    for name, facts in situation.told("software").items():
        if facts["problem"]:
            yield fail(
                name, "the workers' environment cannot be set up", facts["problem"],
                "correct `setup`, `env` or `python` in the job or inventory",
            )  # fmt: skip
        else:
            yield ok(name, "set-up scripts and env.sh end well")


def python(situation: Situation) -> Iterator[Verdict]:
    ready = _ready(situation)
    common, _ = odd_ones({name: facts["python"]["version"] for name, facts in ready.items()})
    for name, facts in ready.items():
        told = facts["python"]
        if not told["path"]:
            yield fail(name, f"no {told['wanted']}", "neither a file nor on PATH after the set-up scripts", INSTALL)
            continue
        version = told["version"]
        what = f"Python {version}"
        number = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        if not LEAST_PYTHON <= number < BEYOND_PYTHON:
            yield fail(name, what, "the payload and MindSpore 2.10 run on Python 3.10 to 3.12", INSTALL)
        elif common and version.split(".")[:2] != common.split(".")[:2]:
            yield fail(
                name, what, f"the other nodes have {common}", "one Python for all: set `python` in the inventory"
            )
        elif version != common:
            yield warn(
                name, what, f"the other nodes have {common}", "one Python for all: set `python` in the inventory"
            )
        else:
            yield ok(name, what)


def mindspore(situation: Situation) -> Iterator[Verdict]:
    ready = {name: facts for name, facts in _ready(situation).items() if facts["modules"]}
    common, _ = odd_ones({name: facts["modules"].get("mindspore") for name, facts in ready.items()})
    for name, facts in ready.items():
        version, where = facts["modules"].get("mindspore"), facts["python"]["path"]
        if version is None:
            step = f"{where} -m pip install mindspore, or name another `python` in the inventory"
            yield fail(name, "no Python module mindspore", f"not importable by {where}", step)
        elif version != common:
            why = f"the other nodes have {common}; ranks of two versions do not find together"
            yield fail(name, f"mindspore {version}", why, f"{where} -m pip install mindspore=={common}")
        else:
            yield ok(name, f"mindspore {version}")


def modules(situation: Situation) -> Iterator[Verdict]:
    ready = {name: facts for name, facts in _ready(situation).items() if facts["modules"]}
    versions = {name: {m: v for m, v in facts["modules"].items() if m != "mindspore"} for name, facts in ready.items()}
    names = sorted({module for own in versions.values() for module in own})
    common = {module: odd_ones({node: own.get(module) for node, own in versions.items()})[0] for module in names}
    for node, own in versions.items():
        where = ready[node]["python"]["path"]
        missing = [module for module in names if own.get(module) is None]
        other = [
            f"{module} {own[module]}, not {common[module]}" for module in names if own.get(module) != common[module]
        ]
        numpy = str(own.get("numpy") or "")
        if missing:
            what = f"no Python module {', '.join(missing)}"
            step = f"{where} -m pip install 'ostrain[models]', or name another `python` in the inventory"
            yield fail(node, what, f"not importable by {where}", step)
        elif numpy and int(numpy.split(".")[0]) >= 2:
            why = "MindSpore's wheel is built against numpy 1 and loses bfloat16 with 2"
            yield fail(node, f"numpy {numpy}", why, f"{where} -m pip install 'numpy<2'")
        elif other:
            yield warn(node, "; ".join(other), "the other nodes have other versions", "one environment for all nodes")
        else:
            yield ok(node, f"{len(own)} modules")


def programs(situation: Situation) -> Iterator[Verdict]:
    for name, facts in _ready(situation).items():
        missing = [program for program, place in facts["programs"].items() if place is None]
        if missing:
            why = f"neither beside {facts['python']['path']} nor on PATH after the set-up scripts"
            yield fail(name, f"no program {', '.join(missing)}", why, "install it there")
        else:
            yield ok(name, ", ".join(facts["programs"]))
