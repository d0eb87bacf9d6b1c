"""The checkpoint a run goes on from: the newest step that is whole on all nodes together, hashes included."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.checkpoint import folder as folders
from models.checkpoint import lineage
from models.checkpoint.folder import Local
from models.checkpoint.keeping import hear, tell
from models.checkpoint.lineage import Lineage
from models.checkpoint.manifest import MANIFEST, STATE, Manifest
from models.checkpoint.places import Places, meet
from models.checkpoint.together import describe_error, raise_together
from models.events import attempt
from models.exits import BAD_CHECKPOINT, PayloadError
from models.files import write_atomic
from models.parallel.world import World


@dataclass(frozen=True)
class Found:
    """What :func:`find` chose; the same on every rank but for ``path``.

    step: 0 where there is no checkpoint yet; ``manifest`` is None then.
    path: the step's folder on this node (it may not exist yet where the node has none of it).
    state: the facts of ``state.json``; state_text: as they were written.
    holders: by shard number, the places that have it whole.
    problems: what is wrong with checkpoints passed over. notes: what was tidied up, and what was set aside.
    """

    step: int
    path: Path
    manifest: Manifest | None
    state: dict[str, Any]
    state_text: str
    holders: tuple[tuple[int, ...], ...]
    places: Places
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def exists(self) -> bool:
        return self.manifest is not None


@dataclass(frozen=True)
class _Candidate:
    """One step as the nodes have it under one manifest: by place, the folder's name and what is there."""

    step: int
    time: float
    digest: str
    at: dict[int, Local]


@dataclass(frozen=True)
class _Chosen:
    candidate: _Candidate
    manifest: Manifest
    state: str
    holders: tuple[tuple[int, ...], ...]


def find(folder: Path, world: World, node: str) -> Found:
    """Looks from the newest step to the oldest; a collective call. Every shard must be whole on some node.

    Folders left by interrupted writes are tidied up; steps newer than the chosen one are renamed to ``step-N.broken``.
    PayloadError(BAD_CHECKPOINT) if there are checkpoints but none is whole: nothing starts from zero unasked.
    """
    places = meet(folder, world, node)
    nodes, removed, known = _surveys(folder, world, places)
    search = _Search(folder, world, places, nodes, known)
    chosen = search.newest_whole()
    committed = sorted({local.step for found in nodes for local in found if local.committed})
    if chosen is None and committed:
        raise _none_whole(folder, committed, search.problems)
    notes = [f"removed {name}, left by an interrupted write" for name in removed]
    notes += _tidy(folder, world, places, nodes, chosen)
    step = chosen.candidate.step if chosen else 0
    _note(folder, world, places, {**known, attempt(): step})
    return Found(
        step=step,
        path=folders.step_path(folder, step),
        manifest=chosen.manifest if chosen else None,
        state=json.loads(chosen.state) if chosen else {},
        state_text=chosen.state if chosen else "",
        holders=chosen.holders if chosen else (),
        places=places,
        problems=tuple(search.problems),
        notes=tuple(notes),
    )


def _none_whole(folder: Path, committed: Sequence[int], problems: Sequence[str]) -> PayloadError:
    shown = "\n    ".join(problems[:20])
    return PayloadError(
        BAD_CHECKPOINT,
        f"there are checkpoints ({', '.join(f'step-{step}' for step in committed[-5:])}), but none is whole",
        where=str(folder),
        why=f"\n    {shown}",
        next_step="bring the files named above back (the disk of a node?); to start anew on purpose delete that folder "
        "on every node, and name weights to start from with train.init_from",
    )


def _note(folder: Path, world: World, places: Places, known: Lineage) -> None:
    """From here this attempt goes on: on every node, before anything of it is written."""
    problem = None
    if places.leader and attempt() > 1:  # the first one leaves nothing behind
        try:
            lineage.write(folder, known)
        except OSError as error:
            problem = describe_error(error, folder)
    raise_together(world, problem, "the folder of checkpoints cannot be put in order", places.name)


def _surveys(folder: Path, world: World, places: Places) -> tuple[list[list[Local]], list[str], Lineage]:
    """What each place has (by place), what was removed there as left over, and where earlier attempts went on from."""
    problem, mine = None, b""
    if places.leader:
        try:
            removed = folders.recover(folder)
            names = [f"{places.name}: {name}" if world.size > 1 else name for name in removed]
            mine = json.dumps([names, list(lineage.read(folder).items())]).encode()
            mine += b"\n" + tell(folders.survey(folder))
        except OSError as error:
            problem = describe_error(error, folder)
    raise_together(world, problem, "the folder of checkpoints cannot be put in order", places.name)
    told = world.gather_bytes(mine)
    said = [told[ranks[0]].partition(b"\n") for ranks in places.ranks]
    heads = [json.loads(head) for head, _, _ in said]
    known = lineage.merged({int(number): int(step) for number, step in pairs} for _, pairs in heads)
    return [hear(survey) for _, _, survey in said], [name for names, _ in heads for name in names], known


class _Search:
    """Goes through the candidates; all ranks together, each hashing its part of what its node has."""

    def __init__(
        self, folder: Path, world: World, places: Places, nodes: Sequence[Sequence[Local]], known: Lineage
    ) -> None:
        self._folder, self._world, self._places, self._nodes, self._known = folder, world, places, nodes, known
        self.problems: list[str] = []

    def newest_whole(self) -> _Chosen | None:
        for candidate in self._candidates():
            manifest = self._manifest(candidate)
            left = lineage.left_behind(self._known, manifest.attempt, manifest.step)
            if left:
                for place, local in candidate.at.items():
                    self._report(place, local, [left])
                continue
            self._take_orphans(candidate, manifest)
            chosen = self._verify(candidate, manifest)
            if chosen is not None:
                return chosen
        return None

    def _candidates(self) -> list[_Candidate]:
        """Newest first. What has no manifest to go by is a problem, and no candidate by itself."""
        found: dict[tuple[int, str], _Candidate] = {}
        for place, locals_ in enumerate(self._nodes):
            for local in locals_:
                if not local.digest:
                    self._report(place, local, local.problems)
                    continue
                candidate = _Candidate(local.step, local.time, local.digest, {})
                found.setdefault((local.step, local.digest), candidate).at[place] = local
        return sorted(found.values(), key=lambda candidate: (candidate.step, candidate.time), reverse=True)

    def _report(self, place: int, local: Local, problems: Iterable[str]) -> None:
        """Only committed folders can have problems: others were never said to be there."""
        if local.committed:
            where = f"{self._places.names[place]}: " if self._world.size > 1 else ""
            self.problems += [f"{where}{local.name}: {problem}" for problem in problems]

    def _manifest(self, candidate: _Candidate) -> Manifest:
        """The candidate's manifest on every rank, from the first node that has it."""
        place = min(candidate.at)
        root = self._places.ranks[place][0]
        data, problem = b"", None
        if self._world.rank == root:
            try:
                data = (self._folder / candidate.at[place].name / MANIFEST).read_bytes()
            except OSError as error:
                problem = describe_error(error, self._folder)
        raise_together(self._world, problem, "a manifest cannot be read any more", self._places.name)
        return Manifest.decode(self._world.broadcast_bytes(data, root=root))

    def _take_orphans(self, candidate: _Candidate, manifest: Manifest) -> None:
        """Nodes whose own manifest of the step is lost, or was never written, may still have its shards."""
        mine = self._nodes[self._places.mine] if self._places.leader else []
        orphans = [local.name for local in mine if local.step == candidate.step and not local.digest]
        found = [folders.examine(self._folder / name, manifest) for name in orphans]
        found = [local for local in found if len(local.present) == max(len(other.present) for other in found)][-1:]
        for rank, data in enumerate(self._world.gather_bytes(tell(found) if found else b"")):
            for local in hear(data):
                candidate.at.setdefault(self._places.of(rank), local)

    def _verify(self, candidate: _Candidate, manifest: Manifest) -> _Chosen | None:
        """Hashes what the nodes have of it, in parallel; None, with the problems noted, if that is not all of it."""
        for place, local in candidate.at.items():
            self._report(place, local, local.problems)
        gone = set(range(len(manifest.shards))) - {n for local in candidate.at.values() for n in local.present}
        if gone:
            # No need to read what else there is.
            self._name_missing(candidate, manifest, gone)
            return None
        told = [json.loads(data) for data in self._world.gather_bytes(self._check_mine(candidate, manifest))]
        holders: list[set[int]] = [set() for _ in manifest.shards]
        for rank, result in enumerate(told):
            place = self._places.of(rank)
            for number in result["good"]:
                holders[number].add(place)
            if result["bad"]:
                self._report(place, candidate.at[place], result["bad"])
        state = next((result["state"] for result in told if result["state"]), "")
        if not state or not all(holders):
            return None
        return _Chosen(candidate, manifest, state, tuple(tuple(sorted(at)) for at in holders))

    def _name_missing(self, candidate: _Candidate, manifest: Manifest, numbers: Iterable[int]) -> None:
        """Names shards that no node has; those of a wrong size have been named already."""
        if not any(local.committed for local in candidate.at.values()):
            return
        told = [problem for local in candidate.at.values() for problem in local.problems]
        for shard in (manifest.shards[number] for number in sorted(numbers)):
            if not any(problem.startswith(shard.file) for problem in told):
                where = "missing on every node" if len(self._places.names) > 1 else "missing"
                self.problems.append(
                    f"step-{candidate.step}: {shard.file} is {where} (written on {', '.join(shard.nodes)})"
                )

    def _check_mine(self, candidate: _Candidate, manifest: Manifest) -> bytes:
        """This rank's part of the shards on its node, and the facts if it leads there."""
        result: dict[str, Any] = {"good": [], "bad": [], "state": ""}
        local = candidate.at.get(self._places.mine)
        if local is not None:
            path = self._folder / local.name
            for number in local.present[self._places.position :: len(self._places.ranks[self._places.mine])]:
                shard = manifest.shards[number]
                problem = folders.content_problem(path / shard.file, shard.size, shard.sha256)
                result["bad" if problem else "good"].append(problem or number)
            if self._places.leader and not any(problem.startswith(STATE) for problem in local.problems):
                problem = folders.content_problem(path / STATE, manifest.state_size, manifest.state_sha256)
                if problem:
                    result["bad"].append(problem)
                else:
                    result["state"] = (path / STATE).read_text()
        return json.dumps(result).encode()


def _tidy(
    folder: Path, world: World, places: Places, nodes: Sequence[Sequence[Local]], chosen: _Chosen | None
) -> list[str]:
    """Commits what was chosen where it is only sealed, sets newer steps aside, removes other sealed folders."""
    problem, notes = None, []
    if places.leader:
        try:
            notes = _tidy_here(folder, places, nodes[places.mine], chosen)
        except OSError as error:
            problem = describe_error(error, folder)
    raise_together(world, problem, "the folder of checkpoints cannot be put in order", places.name)
    told = world.gather_bytes(json.dumps(notes).encode() if places.leader else b"[]")
    return [
        f"{places.names[places.of(rank)]}: {note}" if world.size > 1 else note
        for rank, data in enumerate(told)
        for note in json.loads(data)
    ]


def _tidy_here(folder: Path, places: Places, mine: Sequence[Local], chosen: _Chosen | None) -> list[str]:
    notes = []
    taken = chosen.candidate.at.get(places.mine) if chosen else None
    for local in mine:
        if not local.committed and (taken is None or local.name != taken.name):
            shutil.rmtree(folder / local.name)
            notes.append(f"removed {local.name}, left by an interrupted write")
    if chosen is None:
        return notes
    step = chosen.candidate.step
    for local in mine:
        # Another checkpoint under the chosen step's name would be in the way, too.
        if local.committed and (local.step > step or (local.step == step and taken is None)):
            aside = folders.set_aside(folder, local.step)
            notes.append(f"{local.name} cannot be used; kept aside as {aside.name}")
    if taken is not None:
        _mend(folder / taken.name, chosen)
        if not taken.committed:
            folders.publish(folder, step)
            notes.append(f"step-{step} was written whole but not committed; it is now")
    return notes


def _mend(path: Path, chosen: _Chosen) -> None:
    """Facts and manifest again where they are damaged; all nodes have the same."""
    manifest, state = chosen.manifest, chosen.state.encode()
    if folders.content_problem(path / STATE, manifest.state_size, manifest.state_sha256):
        write_atomic(path / STATE, state)
    if folders.read_manifest(path, manifest.step)[0] is None:
        write_atomic(path / MANIFEST, manifest.encode())
