"""NPUs of the nodes: there, healthy, free; who holds them; what earlier runs left behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ostrain.preflight.npu_load import parse_holders, parse_load
from ostrain.preflight.situation import Situation, output_of
from ostrain.preflight.verdict import Verdict, fail, ok, warn
from ostrain.ranktable.npu_smi import Chip, fields, joined, parse_info, parse_map
from ostrain.ranktable.text import listed

_HEALTHY = "OK"
_SLIGHT = "warning"


def _wanted(situation: Situation, name: str) -> set[int]:
    return set(situation.plan.node(name).devices)


def _chips(facts: dict[str, Any]) -> dict[tuple[int, int], Chip]:
    """(npu, chip) -> chip with the N of its /dev/davinciN."""
    info, _ = output_of(facts["info"])
    mapped, _ = output_of(facts["map"])
    return {(chip.npu, chip.chip): chip for chip in joined(parse_info(info)[0], parse_map(mapped))}


def devices(situation: Situation) -> Iterator[Verdict]:
    for name, facts in situation.told("devices").items():
        wanted = sorted(_wanted(situation, name))
        missing = [number for number in wanted if not facts["nodes"][str(number)]["exists"]]
        closed = [number for number in wanted if number not in missing and not facts["nodes"][str(number)]["usable"]]
        _, silent = output_of(facts["info"])
        if missing:
            why = f"/dev/davinci* are: {listed(facts['found']) or 'none'}"
            yield fail(name, f"no device {listed(missing)}", why, "correct `devices` in the inventory")
        elif closed:
            step = "add the user to the driver's group there: usermod -aG HwHiAiUser USER"
            yield fail(name, f"device {listed(closed)} may not be opened", "its node is closed to this user", step)
        elif silent:
            step = "run `npu-smi info` there; in a container mount it and /usr/local/dcmi"
            yield fail(name, "npu-smi does not tell of the devices", silent, step)
        else:
            yield ok(name, f"devices {listed(wanted)}")


def health(situation: Situation) -> Iterator[Verdict]:
    for name, facts in situation.told("devices").items():
        chips = [chip for chip in _chips(facts).values() if chip.device in _wanted(situation, name)]
        if output_of(facts["info"])[1] or not chips:
            continue  # the line above says it
        sick = [chip for chip in chips if chip.health and chip.health != _HEALTHY]
        if not sick:
            yield ok(name, f"{len(chips)} of {len(chips)} healthy")
            continue
        what = ", ".join(f"device {chip.device} {chip.health}" for chip in sick)
        why = "; ".join(_details(facts, chip) for chip in sick)
        make = warn if all(chip.health.lower() == _SLIGHT for chip in sick) else fail
        step = f"npu-smi info -t health -i {sick[0].npu} there; leave the device out of `devices` until it is repaired"
        yield make(name, what, why, step)


def _details(facts: dict[str, Any], chip: Chip) -> str:
    told = fields(output_of(facts["details"].get(str(chip.npu)))[0])
    code, words = told.get("error code", "NA"), told.get("error information", "NA")
    return f"device {chip.device}: error code {code}" + (f", {words}" if words != "NA" else "")


def _runs(situation: Situation, name: str) -> dict[int, str]:
    """pid -> run, of the tagged processes of a node."""
    tagged = situation.told("processes").get(name, {}).get("tagged", [])
    return {one["pid"]: one["run"] for one in tagged}


def busy(situation: Situation) -> Iterator[Verdict]:
    for name, facts in situation.told("devices").items():
        text, silent = output_of(facts["info"])
        if silent:
            continue
        chips, runs = _chips(facts), _runs(situation, name)
        wanted = _wanted(situation, name)
        places = {key: chip.device for key, chip in chips.items() if chip.device in wanted}
        holders = [one for one in parse_holders(text) if (one.npu, one.chip) in places]
        held = {(one.npu, one.chip) for one in holders}
        loads = [one for one in parse_load(text) if (one.npu, one.chip) in places and not one.idle]
        words = [
            f"device {places[one.npu, one.chip]}: pid {one.pid} {one.name}, {one.memory} MB"
            + (f", run {runs[one.pid]}" if one.pid in runs else "")
            for one in holders
        ] + [
            f"device {places[one.npu, one.chip]}: {one.used} of {one.total} MB in use, cores at {one.cores} %"
            for one in loads
            if (one.npu, one.chip) not in held
        ]
        if words:
            run = next((runs[one.pid] for one in holders if one.pid in runs), "")
            step = f"ostrain cancel {run}, or wait for its end" if run else "end it there, or choose other devices"
            taken = sorted({places[key] for key in held | {(one.npu, one.chip) for one in loads}})
            yield fail(name, f"device {listed(taken)} is in use", "; ".join(words[:4]), step)
        else:
            yield ok(name, f"{len(places)} of {len(places)} free")


def holders(situation: Situation) -> Iterator[Verdict]:
    """Processes with a device open that npu-smi does not list: it cannot be opened anew before they end."""
    for name, facts in situation.told("processes").items():
        wanted = _wanted(situation, name)
        text, _ = output_of(situation.told("devices").get(name, {}).get("info"))
        listed_pids = {one.pid for one in parse_holders(text)} | {one["pid"] for one in _left_over(facts)}
        found = [one for one in facts["holders"] if one["pid"] not in listed_pids]
        found = [one for one in found if wanted & set(map(int, one["devices"]))]
        if found:
            taken = sorted({int(number) for one in found for number in one["devices"]} & wanted)
            words = [f"pid {one['pid']} {one['command']}" + (f" of run {one['run']}" if one["run"] else "")
                     for one in found]  # fmt: skip
            pids = " ".join(str(one["pid"]) for one in found)
            yield fail(
                name, f"device {listed(taken)} is held open", "; ".join(words[:4]), f"end them there: kill {pids}"
            )
        else:
            unseen = f"; {facts['closed']} processes of others cannot be looked into" if facts["closed"] else ""
            yield ok(name, "nobody holds a device" + unseen)


def _left_over(facts: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in facts["tagged"] if one["here"] and not one["agent_alive"]]


def leftovers(situation: Situation) -> Iterator[Verdict]:
    """Processes of runs whose agent is gone; runs at work are only told of where devices can be shared."""
    for name, facts in situation.told("processes").items():
        left = _left_over(facts)
        runs = sorted({one["run"] for one in left})
        work = sorted({one["run"] for one in facts["tagged"] if one["agent_alive"] and one["here"]})
        if left:
            words = "; ".join(f"pid {one['pid']} ({one['state']}) {one['command']}" for one in left[:4])
            pids = " ".join(str(one["pid"]) for one in left)
            step = f"ostrain cancel {runs[0]}, or there: kill -9 {pids}"
            yield fail(name, f"left over of run {', '.join(runs)}", words, step)
        else:
            yield ok(name, f"none; at work: {', '.join(work)}" if work else "none")
