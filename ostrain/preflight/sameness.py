"""What has to be the same on every node: files the job names, pushed code, the environment of collectives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ostrain.preflight.situation import Situation, odd_ones
from ostrain.preflight.verdict import Verdict, fail, ok, warn

# Differ by node on purpose, or do not reach the collectives.
_OWN = frozenset({"HCCL_IF_IP", "HCCL_SOCKET_IFNAME", "HCCL_WHITELIST_FILE", "HOSTNAME", "GLOO_SOCKET_IFNAME",
                  "MS_WORKER_IP", "ASCEND_PROCESS_LOG_PATH", "GLOG_log_dir", "OMP_NUM_THREADS"})  # fmt: skip


def files(situation: Situation) -> Iterator[Verdict]:
    told, keys = situation.told("files"), situation.wishes.files
    common: dict[str, str | None] = {}
    for path in keys:
        hashes = {name: str(facts[path].get("hash", "")) for name, facts in told.items() if facts[path]["kind"]}
        common[path] = odd_ones({name: value for name, value in hashes.items() if value})[0]
    for name, facts in told.items():
        missing = [path for path in keys if not facts[path]["kind"]]
        other = [path for path in keys if facts[path].get("hash") and facts[path]["hash"] != common[path]]
        if missing:
            why = "; ".join(f"{path}: {facts[path]['problem']} ({keys[path]})" for path in missing[:4])
            yield fail(
                name, f"{len(missing)} of {len(keys)} files cannot be read", why, "put them there, or correct the job"
            )
        elif any(facts[path]["kind"] == "file" for path in other):
            why = "; ".join(f"{path} ({keys[path]})" for path in other[:4]) + ": not what the other nodes have"
            yield fail(name, f"{len(other)} of {len(keys)} files differ", why, "copy one node's file to the others")
        elif other:
            why = "; ".join(f"{path} ({keys[path]})" for path in other[:4]) + ": other names or sizes in it"
            yield warn(name, f"{len(other)} of {len(keys)} folders differ", why, "copy one node's folder to the others")
        else:
            yield ok(name, f"{len(keys)} named, all the same" if keys else "none named")


def code(situation: Situation) -> Iterator[Verdict]:
    """Bundles are unpacked once and never changed: somebody may have, to try something."""
    expected = situation.wishes.code
    for name, facts in situation.told("code").items():
        changed = [one for one in expected if facts.get(one) not in (None, expected[one][1])]
        here = [one for one in expected if facts.get(one) is not None]
        if changed:
            what = ", ".join(expected[one][0] for one in changed)
            why = "; ".join(f"{one[:20]}… under the root was edited or is damaged" for one in changed)
            root = situation.plan.node(name).access.root
            yield fail(name, f"{what} is not what was pushed", why, f"delete it there: rm -rf {root}/{changed[0]}")
        else:
            yield ok(name, f"{len(here)} of {len(expected)} there, unchanged; the rest is sent")


def environment(situation: Situation) -> Iterator[Verdict]:
    told = {n: facts["environment"] for n, facts in situation.told("software").items() if not facts["problem"]}
    seen = {name: _compared(values, situation.wishes.handed) for name, values in told.items()}
    names = sorted({variable for values in seen.values() for variable in values})
    common = {v: odd_ones({node: values.get(v) for node, values in seen.items()})[0] for v in names}
    for node, values in seen.items():
        odd = [variable for variable in names if values.get(variable) != common[variable]]
        if odd:
            words = "; ".join(f"{v} is {_shown(values.get(v))}, elsewhere {_shown(common[v])}" for v in odd[:4])
            step = "say it once in the job's or the inventory's `env`, or correct the set-up script there"
            yield fail(node, f"{', '.join(odd)} differs", words, step)
        else:
            yield ok(node, f"{len(values)} variables of HCCL and MindSpore, the same" if values else "nothing set")


def _compared(values: dict[str, Any], handed: frozenset[str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if name not in _OWN and name not in handed}


def _shown(value: str | None) -> str:
    return "not set" if value is None else repr(value)[:60]
