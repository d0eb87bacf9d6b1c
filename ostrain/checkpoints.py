"""Where the checkpoints are that a command line names: a folder, the folders of several nodes, or a run anywhere."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cluster.backend import Backend, NodeError, PerNode, RunRef
from models.checkpoint.folder import content_problem
from models.checkpoint.manifest import STATE, Shard
from models.checkpoint.view import Holding, LocalHolding, View, local_holdings, views
from models.config.tasks import TASKS
from ostrain.errors import OstrainError
from ostrain.paths import cache_dir
from ostrain.plan import LaunchPlan
from ostrain.states import ExitCode
from ostrain.store import Run, Store

_STEP = re.compile(r"step-(\d+)(\.broken)?")
_PORTION = 16 << 20
# A node reads at least this much a second when it hashes.
_SLOWEST = 20 << 20

Progress = Callable[[int], None]


@dataclass
class Source:
    """Checkpoints to look at. errors: nodes that did not answer. only: the one folder that was named, if it was one."""

    name: str
    views: list[View]
    errors: list[NodeError] = field(default_factory=list)
    only: str = ""
    fetched: Path | None = None

    def chosen(self, step: int | None) -> View:
        """The view of a step (default: the one named, or the newest that is whole by sizes)."""
        candidates = [view for view in self.views if not view.aside or view.name == self.only]
        if step is not None:
            candidates = [view for view in candidates if view.step == step]
        whole = [view for view in candidates if view.whole]
        if whole:
            return whole[-1]
        if candidates:
            problems = [problem for view in candidates for problem in view.problems]
            raise OstrainError(
                "no checkpoint there is whole" if step is None else f"step {step} is not whole",
                where=self.name,
                why="\n    ".join(["", *problems[:20], *(error.what for error in self.errors)]),
                next_step="name the folders of all nodes, or another step; ostrain ckpt ls shows what there is",
                exit_code=ExitCode.RUN_FAILED,
            )
        there = ", ".join(str(view.step) for view in self.views) or "none"
        raise OstrainError(
            "there is no checkpoint" if step is None else f"there is no checkpoint of step {step}",
            where=self.name,
            why=f"steps there: {there}",
            next_step="ostrain ckpt ls",
            exit_code=ExitCode.USAGE,
        )

    def paths(self, view: View, good: Mapping[int, Holding], progress: Progress = lambda size: None) -> dict[int, Path]:
        """The shards of a view on this machine, by number; those of remote nodes are fetched and checked."""
        assert view.manifest is not None
        found = {}
        for number, holding in good.items():
            shard = view.manifest.shards[number]
            if isinstance(holding, LocalHolding):
                found[number] = holding.path / shard.file
            else:
                assert isinstance(holding, RemoteHolding)
                self.fetched = cache_dir() / "checkpoints" / holding.run.run_id
                target = self.fetched / f"{view.name}-{view.manifest.digest[:16]}" / shard.file
                if content_problem(target, shard.size, shard.sha256):
                    holding.download(shard, target, progress)
                found[number] = target
        return found

    def state(self, view: View) -> bytes:
        """The facts as they were written."""
        assert view.manifest is not None
        for holding in view.holdings:
            data = holding.read(STATE) if STATE in holding.sizes() else b""
            if hashlib.sha256(data).hexdigest() == view.manifest.state_sha256:
                return data
        raise OstrainError(f"{STATE} of step {view.step} is on no node", where=self.name, next_step="ostrain ckpt ls")


class RemoteHolding:
    """A step's folder on a node of a run."""

    def __init__(self, listing: Listing, node: str, name: str, files: Mapping[str, int]) -> None:
        self.node, self.name = node, name
        self.run = listing.run
        self._listing, self._files = listing, files

    def sizes(self) -> Mapping[str, int]:
        return self._files

    def read(self, file: str) -> bytes:
        return self._listing.read(self.node, self._path(file))

    def sha256(self, file: str) -> str:
        return self._listing.hashes(self.name).get((self.node, self._path(file)), "")

    def place(self, file: str) -> str:
        return f"{self.node}:{self._path(file)}"

    def _path(self, file: str) -> str:
        return f"{self._listing.folder}/{self.name}/{file}"

    def download(self, shard: Shard, target: Path, progress: Progress) -> None:
        """Whole and as it should be, or not there. NodeError."""
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.part")
        digest = hashlib.sha256()
        path = self._path(shard.file)
        with temporary.open("wb") as out:
            while out.tell() < shard.size:
                data = self._listing.backend.fetch(self.run, self.node, path, limit=_PORTION, offset=out.tell())
                if not data:
                    break
                out.write(data)
                digest.update(data)
                progress(len(data))
        if digest.hexdigest() != shard.sha256:
            temporary.unlink()
            raise NodeError(
                "protocol",
                f"{shard.file} arrived damaged",
                node=self.node,
                why="its SHA-256 is not that of the manifest",
                next_step="ostrain ckpt verify tells whether it is damaged there, too",
            )
        os.replace(temporary, target)


class Listing:
    """What the nodes of a run have, asked once."""

    def __init__(self, backend: Backend, run: RunRef, folder: str) -> None:
        self.backend, self.run, self.folder = backend, run, folder
        self._hashes: dict[str, dict[tuple[str, str], str]] = {}
        self._sizes: dict[str, int] = {}
        self._small: dict[tuple[str, str], str] = {}
        self._contents: dict[str, bytes] = {}

    def holdings(self) -> tuple[list[RemoteHolding], list[NodeError]]:
        found, errors = [], []
        steps_of = f"{glob.escape(self.folder)}/step-*"
        answers = self.backend.files(self.run, (f"{steps_of}/*",))
        self._small = _digests(self.backend.files(self.run, (f"{steps_of}/*.json",), hashes=True))
        for node, answer in answers.items():
            if isinstance(answer, NodeError):
                if answer.kind != "no_run":
                    errors.append(answer)
                continue
            steps: dict[str, dict[str, int]] = {}
            for path, facts in answer.items():
                name, file = path.split("/")[-2:]
                if _STEP.fullmatch(name):
                    steps.setdefault(name, {})[file] = facts["size"]
            for name, files in steps.items():
                self._sizes[name] = max(self._sizes.get(name, 0), sum(files.values()))
                found.append(RemoteHolding(self, node, name, files))
        return found, errors

    def read(self, node: str, path: str) -> bytes:
        """A small file. All nodes have the same manifests and facts: each content is fetched once."""
        digest = self._small.get((node, path), "")
        if digest not in self._contents:
            data = self.backend.fetch(self.run, node, path)
            if not digest:
                return data
            self._contents[digest] = data
        return self._contents[digest]

    def hashes(self, name: str) -> dict[tuple[str, str], str]:
        """(node, path) -> SHA-256 of a step's files, computed by the nodes at the same time."""
        if name not in self._hashes:
            pattern = f"{glob.escape(self.folder)}/{name}/*"
            timeout = 60.0 + self._sizes.get(name, 0) / _SLOWEST
            self._hashes[name] = _digests(self.backend.files(self.run, (pattern,), hashes=True, timeout=timeout))
        return self._hashes[name]


def _digests(answers: PerNode[dict[str, Any]]) -> dict[tuple[str, str], str]:
    """(node, path) -> SHA-256, of nodes that answered."""
    return {
        (node, path): facts["sha256"] or ""
        for node, answer in answers.items()
        if not isinstance(answer, NodeError)
        for path, facts in answer.items()
    }


@contextmanager
def opened(words: Sequence[str]) -> Iterator[Source]:
    """The checkpoints that ``words`` name: paths (run directory, folder of checkpoints, ``step-N``), or one run."""
    paths = [Path(word) for word in words]
    if all(path.exists() for path in paths):
        yield _local(paths)
        return
    if len(words) > 1:
        missing = next(str(path) for path in paths if not path.exists())
        raise _nothing(missing, "several names must all be folders")
    store = Store()
    try:
        run = store.find(words[0])
    except OstrainError as error:
        raise _nothing(words[0], f"it is no path, and {error.what}") from error
    finally:
        store.close()
    with _of_run(run) as source:
        yield source


def _nothing(word: str, why: str) -> OstrainError:
    return OstrainError(
        f"no checkpoints at {word!r}", why=why, exit_code=ExitCode.USAGE,
        next_step="name a run (ostrain ps -a), a run directory, a folder of checkpoints, or a folder step-N",
    )  # fmt: skip


def _local(paths: Sequence[Path]) -> Source:
    folders: dict[str, Path] = {}
    only = set()
    for path in paths:
        name, found = _folders_at(path.absolute())
        only.add(name)
        folders.update(found)
    step = only.pop() if len(only) == 1 else ""
    holdings: list[Holding] = [one for one in local_holdings(folders) if not step or one.name == step]
    return Source(", ".join(map(str, paths)), views(holdings), only=step)


def _folders_at(path: Path) -> tuple[str, dict[str, Path]]:
    """(name of the step's folder if ``path`` is one, folders of checkpoints by node)."""
    if not path.is_dir():
        raise _nothing(str(path), "it is a file")
    if _STEP.fullmatch(path.name):
        return path.name, _siblings(path.parent)
    if any(_STEP.fullmatch(entry.name) for entry in path.iterdir()):
        return "", _siblings(path)
    config = _config_file(path)
    if config is not None or (path / "checkpoints").is_dir():
        folder = path / _folder_name(config.read_text() if config is not None else "")
        if folder.is_dir():
            return "", _siblings(folder)
        raise _nothing(str(path), f"this run directory has no folder {folder.name} yet")
    runs = {entry.name: entry / "checkpoints" for entry in sorted(path.iterdir()) if (entry / "checkpoints").is_dir()}
    if not runs:
        raise _nothing(str(path), "there is no folder step-N in it, and no run directory")
    return "", runs


def _siblings(folder: Path) -> dict[str, Path]:
    """The folder itself, and those of the run's other nodes where this machine plays several of them."""
    node = folder.parent
    found = {node.name if _config_file(node) is not None else str(folder): folder}
    if node.parent.parent.name == "runs" and _config_file(node) is not None:
        for other in sorted(node.parent.iterdir()):
            if _config_file(other) is not None and (other / folder.name).is_dir():
                found[other.name] = other / folder.name
    return found


def _config_file(folder: Path) -> Path | None:
    """The configuration of the task in a run directory, or None where ``folder`` is none."""
    return next((folder / f"{task}.yaml" for task in TASKS if (folder / f"{task}.yaml").exists()), None)


def _folder_name(config_yaml: str) -> str:
    """``checkpoint.dir`` of a resolved configuration."""
    config: Any = yaml.safe_load(config_yaml) or {}
    return str((config.get("checkpoint") or {}).get("dir") or "checkpoints")


def _plan_folder(plan: LaunchPlan) -> str:
    return _folder_name(next((file.text for file in plan.nodes[0].files if file.path == f"{plan.task}.yaml"), ""))


@contextmanager
def _of_run(run: Run) -> Iterator[Source]:
    from cluster.backends import open_backend

    plan = run.plan
    folder = os.path.normpath(_plan_folder(plan))
    if plan.backend == "local":
        from cluster.local_backend import local_root

        places = {
            node.name: Path(local_root(node.access), "runs", run.run_id, node.name, folder) for node in plan.nodes
        }
        there = {name: path for name, path in places.items() if path.is_dir()}
        yield Source(run.run_id, views(local_holdings(there)))
        return
    if folder.startswith(("/", "..")):
        raise OstrainError(
            f"the checkpoints of {run.run_id} are outside its run directory",
            where=folder,
            next_step="run ostrain ckpt on a node, with that folder as its PATH",
            exit_code=ExitCode.USAGE,
        )
    backend = open_backend(plan)
    try:
        listing = Listing(backend, RunRef(run.run_id, plan), folder)
        found, errors = listing.holdings()
        source = Source(run.run_id, views(found), errors)
        yield source
        # What was fetched is of no use once the work is done; after an error a second try finds it.
        if source.fetched is not None:
            shutil.rmtree(source.fetched, ignore_errors=True)
    finally:
        backend.close()
