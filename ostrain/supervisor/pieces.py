"""Pieces of checkpoints that only nodes outside the next attempt have: brought to its nodes before it starts.

Within an attempt the payload fetches what a node lacks from the others by itself (docs/checkpoints.md). A node that is
not part of it any more cannot give: as long as it answers, this machine carries the pieces over.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.backend import Backend, NodeError, RunRef
from cluster.recovery import NodeRecovery
from models.checkpoint.manifest import MANIFEST, STATE, BadManifest, Manifest
from ostrain.plan import LaunchPlan, NodePlan

PATTERNS = ("checkpoints/step-*/*",)
_STEP = re.compile(r"checkpoints/step-(\d+)/([^/]+)$")
BOUND = 60.0


@dataclass(frozen=True)
class Copy:
    """A file to bring from node ``source`` to node ``target``."""

    path: str
    source: str
    target: str
    size: int
    sha256: str


Listing = Mapping[str, Mapping[str, int]]  # node -> path -> bytes


def needed(manifest: Manifest, listing: Listing, chosen: tuple[str, ...]) -> list[Copy] | None:
    """What the ``chosen`` nodes lack of a checkpoint that all nodes of ``listing`` have together; None where even they
    do not have all of it. Pure; sizes only, hashes are checked where a file arrives."""
    folder = f"checkpoints/step-{manifest.step}"
    files = [(shard.file, shard.size, shard.sha256) for shard in manifest.shards]
    files.append((STATE, manifest.state_size, manifest.state_sha256))
    copies = []
    for number, (name, size, sha256) in enumerate(files):
        path = f"{folder}/{name}"
        holders = [node for node, paths in listing.items() if paths.get(path) == size]
        if not holders:
            return None
        if not set(holders) & set(chosen):
            copies.append(Copy(path, holders[0], chosen[number % len(chosen)], size, sha256))
    return copies


def bring(backend: Backend, recovery: NodeRecovery, run: RunRef, before: LaunchPlan) -> Iterator[str]:
    """Copy what the run's nodes lack of the newest whole checkpoint from nodes of the plan ``before``; what was done,
    line by line. NodeError where a node fails in the middle of it."""
    chosen = tuple(node.name for node in run.plan.nodes)
    leaving = tuple(node for node in before.nodes if node.name not in chosen)
    if not leaving:
        return
    plan = dataclasses.replace(run.plan, nodes=(*run.plan.nodes, *leaving), spares=())
    everyone = RunRef(run.run_id, plan)
    answers = backend.files(everyone, PATTERNS, timeout=BOUND)
    listing = {
        name: {path: int(facts["size"]) for path, facts in answer.items()}
        for name, answer in answers.items()
        if not isinstance(answer, NodeError)
    }
    for manifest in _manifests(backend, everyone, listing):
        copies = needed(manifest, listing, chosen)
        if copies is None:
            continue
        for copy in copies:
            source, target = plan.node(copy.source), plan.node(copy.target)
            recovery.copy(everyone, copy.path, source, target, size=copy.size, sha256=copy.sha256, timeout=BOUND)
        if copies:
            _bring_manifest(backend, recovery, everyone, manifest, listing, [plan.node(name) for name in chosen])
            size = sum(copy.size for copy in copies)
            sources = ", ".join(sorted({copy.source for copy in copies}))
            yield f"{len(copies)} files ({size} bytes) of step-{manifest.step} from {sources}"
        return


def _manifests(backend: Backend, run: RunRef, listing: Listing) -> Iterator[Manifest]:
    """Manifests of all steps, newest first; each distinct one once."""
    places: dict[int, list[str]] = {}
    for node, paths in listing.items():
        for path in paths:
            match = _STEP.match(path)
            if match and match[2] == MANIFEST:
                places.setdefault(int(match[1]), []).append(node)
    for step in sorted(places, reverse=True):
        seen = set()
        for node in places[step]:
            try:
                manifest = Manifest.decode(backend.fetch(run, node, f"checkpoints/step-{step}/{MANIFEST}"))
            except (NodeError, BadManifest):
                continue
            if manifest.digest not in seen:
                seen.add(manifest.digest)
                yield manifest


def _bring_manifest(
    backend: Backend,
    recovery: NodeRecovery,
    run: RunRef,
    manifest: Manifest,
    listing: Listing,
    targets: list[NodePlan],
) -> None:
    """The list itself, last: onto the nodes that have none of that step."""
    import hashlib

    path = f"checkpoints/step-{manifest.step}/{MANIFEST}"
    source = next(name for name, paths in listing.items() if path in paths)
    data = backend.fetch(run, source, path)
    digest = hashlib.sha256(data).hexdigest()
    facts: dict[str, Any] = {"size": len(data), "sha256": digest, "timeout": BOUND}
    for target in targets:
        if path not in listing.get(target.name, {}):
            recovery.copy(run, path, run.plan.node(source), target, **facts)
