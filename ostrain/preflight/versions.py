"""Driver, firmware and CANN: there, the same on every node, and compatible with one another and MindSpore."""

from __future__ import annotations

from collections.abc import Iterator

from ostrain.preflight import compatibility as fits
from ostrain.preflight.situation import Situation, odd_ones
from ostrain.preflight.verdict import Verdict, fail, ok, warn

_NAMES = {"driver": "driver", "firmware": "firmware", "cann": "CANN"}
_MISSING = {
    "driver": "install the NPU driver, or mount /usr/local/Ascend/driver into the container",
    "firmware": "install the NPU firmware, or mount /usr/local/Ascend/firmware into the container",
    "cann": "install the CANN toolkit and name its set_env.sh under `setup` in the inventory",
}


def _texts(situation: Situation, kind: str) -> dict[str, str]:
    """Node -> text of a version file, empty where there is none."""
    told = {name: facts.get("ascend") for name, facts in situation.told("software").items() if not facts["problem"]}
    found = {}
    for name, files in told.items():
        if files is not None:
            file = files.get(kind) or (files.get("compiler") if kind == "cann" else None)
            found[name] = str(file["text"]) if file else ""
    return found


def _equal(situation: Situation, kind: str) -> Iterator[Verdict]:
    versions = {name: fits.version_of(kind, text) for name, text in _texts(situation, kind).items()}
    common, _ = odd_ones({name: version for name, version in versions.items() if version})
    label = _NAMES[kind]
    for name, version in versions.items():
        if not version and kind == "firmware":
            # Containers seldom see it, and it does not keep a job from running.
            yield warn(name, "firmware unknown", "/usr/local/Ascend/firmware/version.info is not there", _MISSING[kind])
        elif not version:
            yield fail(name, f"no {label} found", "its version file is not there", _MISSING[kind])
        elif version != common:
            why = f"the other nodes have {common}; HCCL wants one version on all nodes"
            yield fail(name, f"{label} {version}", why, f"install {common} there")
        else:
            yield ok(name, f"{label} {version}")


def driver(situation: Situation) -> Iterator[Verdict]:
    yield from _equal(situation, "driver")


def firmware(situation: Situation) -> Iterator[Verdict]:
    yield from _equal(situation, "firmware")


def cann(situation: Situation) -> Iterator[Verdict]:
    yield from _equal(situation, "cann")


def compatible(situation: Situation) -> Iterator[Verdict]:
    texts = {kind: _texts(situation, kind) for kind in _NAMES}
    for name, facts in situation.told("software").items():
        if facts["problem"]:
            continue
        own = {kind: fits.version_of(kind, texts[kind].get(name, "")) for kind in _NAMES}
        framework = str(facts["modules"].get("mindspore") or "")
        found = []
        if framework and own["cann"]:
            found.append(fits.cann_of_mindspore(framework, own["cann"]))
        if own["cann"] and own["driver"]:
            found.append(fits.driver_of_cann(own["cann"], own["driver"]))
        if own["driver"] and own["firmware"]:
            found.append(fits.firmware_of_driver(texts["driver"][name], own["firmware"]))
            found.append(fits.driver_of_firmware(texts["firmware"][name], own["driver"]))
        problems = [problem for problem in found if problem]
        known = [f"{label} {value}" for label, value in (("MindSpore", framework), ("CANN", own["cann"]),
                 ("driver", own["driver"]), ("firmware", own["firmware"])) if value]  # fmt: skip
        if problems:
            step = "install versions that go together, or skip this line (`check: {skip: [compatible]}`)"
            yield fail(name, "versions do not go together", "; ".join(problems), step)
        else:
            yield ok(name, ", ".join(known))
