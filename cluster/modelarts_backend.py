"""The backend ``modelarts``: a run is a training job of Huawei Cloud ModelArts. docs/modelarts.md tells how.

Nobody can log in to a job's containers: everything goes through the training API and objects in a bucket.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cluster.backend import FollowItem, NodeError, PerNode, RunRef
from cluster.cloud import CloudError, Patience
from cluster.modelarts import ENDED, TrainingJobs
from cluster.modelarts_follow import Follower, as_node_error, matches
from cluster.modelarts_job import section_of
from cluster.modelarts_run import ServiceRun
from cluster.modelarts_status import merged
from cluster.obs import CloudKeys, HuaweiObs, ObsStore
from cluster.secrets import read_secret
from ostrain.errors import OstrainError
from ostrain.plan import LaunchPlan

T = TypeVar("T")
STOP_MARGIN = 60.0  # seconds beyond the grace that the service may take to end a job
PORTION = 8 << 20


class ModelArtsBackend:
    """See ``cluster.backend.Backend``. Nodes of a plan are workers of the job: ``node-0`` is ``worker-0``.

    every: seconds between two looks at a job; patience: how failing calls are repeated. ``probe``, ``stage`` and
    ``start`` raise what goes wrong: it is the job's, not one of many nodes'.
    """

    name = "modelarts"

    def __init__(self, *, every: float | None = None, patience: Patience | None = None, timeout: float = 30.0) -> None:
        self._every = every if every is not None else float(os.environ.get("OSTRAIN_MODELARTS_POLL", "5"))
        self._patience = patience or Patience()
        self._timeout = timeout
        self._open: dict[str, tuple[TrainingJobs, ObsStore]] = {}

    def _clients(self, plan: LaunchPlan) -> tuple[TrainingJobs, ObsStore]:
        """Clients of a plan's project and bucket. Keys are looked up now and kept in memory only."""
        key = json.dumps(plan.service, sort_keys=True)
        if key not in self._open:
            section = section_of(plan)
            token = section.keys.security_token
            keys = CloudKeys(
                read_secret(section.keys.access_key),
                read_secret(section.keys.secret_key),
                read_secret(token) if token else "",
            )
            jobs = TrainingJobs(
                section.service_url, section.project_id, section.workspace_id, keys,
                timeout=self._timeout, patience=self._patience,
            )  # fmt: skip
            store = HuaweiObs(section.obs_url, section.bucket, keys, timeout=self._timeout, patience=self._patience)
            self._open[key] = jobs, store
        return self._open[key]

    def _run(self, run: RunRef) -> ServiceRun:
        jobs, store = self._clients(run.plan)
        return ServiceRun(run, section_of(run.plan), jobs, store)

    def _everywhere(self, plan: LaunchPlan, call: Callable[[], T]) -> PerNode[T]:
        """One answer for all nodes: the service knows the job, not its nodes."""
        answer: T | OstrainError
        try:
            answer = call()
        except OstrainError as error:
            answer = error
        if not isinstance(answer, OstrainError):
            return {node.name: answer for node in plan.nodes}
        return {node.name: _of_node(answer, node.name) for node in plan.nodes}

    def probe(self, plan: LaunchPlan, *, timeout: float = 30.0) -> PerNode[dict[str, Any]]:
        """Keys, project, workspace and bucket. What is in the image shows when containers come up."""

        def ask() -> dict[str, Any]:
            jobs, store = self._clients(plan)
            jobs.check()
            next(store.list(f"{section_of(plan).folder}/archives/"), None)
            return {"problems": [], "time": time.time()}

        return dict.fromkeys((node.name for node in plan.nodes), _told(ask))

    def stage(self, run: RunRef, bundle: Path, *, timeout: float = 600.0) -> PerNode[None]:
        _told(lambda: self._run(run).stage(bundle))
        return {node.name: None for node in run.plan.nodes}

    def start(self, run: RunRef, attempt: int, secrets: Mapping[str, str], *, timeout: float = 60.0) -> PerNode[None]:
        _told(lambda: self._run(run).start(attempt, secrets))
        return {node.name: None for node in run.plan.nodes}

    def poll(self, run: RunRef, *, timeout: float = 15.0) -> PerNode[dict[str, Any]]:
        try:
            place = self._run(run)
            attempt = place.attempt()
            if attempt is None:
                return {node.name: _no_run(node.name) for node in run.plan.nodes}
            found = merged(run.plan, attempt, place.records(), time.time())
            if attempt.job is not None and attempt.job.phase in ENDED:
                place.forget_secrets()
            return dict(found)
        except CloudError as error:
            return {node.name: as_node_error(error, node.name) for node in run.plan.nodes}

    def stacks(self, run: RunRef, *, timeout: float = 8.0) -> PerNode[dict[str, Any]]:
        why = "ModelArts gives no way into a job's containers"
        names = [node.name for node in run.plan.nodes]
        return {name: NodeError("unreachable", "workers cannot be asked here", node=name, why=why) for name in names}

    def follow(
        self,
        run: RunRef,
        cursors: Mapping[str, Mapping[str, int]],
        patterns: tuple[str, ...],
        *,
        until_final: bool = True,
    ) -> Iterator[FollowItem]:
        return Follower(self._run(run), cursors, patterns, self._every).follow(until_final)

    def fetch(self, run: RunRef, node: str, path: str, *, limit: int = 64 << 20, offset: int = 0) -> bytes:
        try:
            place = self._run(run)
            data = place.store.get(place.folder(run.plan.node(node).name) + _inside(path, node), offset, limit)
        except CloudError as error:
            raise as_node_error(error, node) from error
        if data is None:
            raise NodeError("no_run", f"no file {path} among what the node handed over", node=node)
        return data

    def files(
        self, run: RunRef, patterns: tuple[str, ...], *, hashes: bool = False, timeout: float = 60.0
    ) -> PerNode[dict[str, Any]]:
        answers: PerNode[dict[str, Any]] = {}
        place = self._run(run)
        for node in run.plan.nodes:
            prefix, found = place.folder(node.name), {}
            try:
                for entry in place.store.list(prefix):
                    path = entry.key[len(prefix) :]
                    if any(matches(path, pattern) for pattern in patterns):
                        digest = _hash(place.store, entry.key, entry.size) if hashes else None
                        found[path] = {"size": entry.size, "sha256": digest}
                answers[node.name] = found
            except CloudError as error:
                answers[node.name] = as_node_error(error, node.name)
        return answers

    def stop(self, run: RunRef, *, grace: float = 10.0, reason: str = "cancelled") -> PerNode[dict[str, Any]]:
        """Ask the service to end the job and wait until it has. Its containers end their own processes."""

        def ask() -> dict[str, Any]:
            place = self._run(run)
            attempt = place.attempt()
            if attempt is None:
                raise _no_run(run.plan.nodes[0].name)
            if attempt.job is not None and attempt.job.phase not in ENDED:
                if reason == "cancelled":
                    place.note_cancel(attempt)
                place.jobs.stop(attempt.job.id)
                self._wait_for_end(place, attempt.job.id, grace + STOP_MARGIN)
            place.forget_secrets()
            return {"killed": [], "survivors": [], "state": "CANCELLED" if reason == "cancelled" else "FAILED"}

        return self._everywhere(run.plan, ask)

    def _wait_for_end(self, place: ServiceRun, job: str, bound: float) -> None:
        deadline = time.monotonic() + bound
        while (phase := place.jobs.show(job).phase) not in ENDED:
            if time.monotonic() > deadline:
                raise OstrainError(
                    f"ModelArts has not ended job {job} within {bound:g} s",
                    why=f"its phase is {phase}",
                    next_step=f"ostrain cancel {place.run.run_id} again, or look into the console",
                    exit_code=4,
                )
            time.sleep(min(self._every, 2.0))

    def remove(self, run: RunRef, *, timeout: float = 60.0) -> PerNode[None]:
        def ask() -> None:
            place = self._run(run)
            attempt = place.attempt()
            if attempt is not None and attempt.job is not None and attempt.job.phase not in ENDED:
                what = f"the run still has job {attempt.job.id} ({attempt.job.phase})"
                raise OstrainError(what, next_step=f"ostrain cancel {run.run_id}", exit_code=4)
            place.delete()

        return self._everywhere(run.plan, ask)

    def close(self) -> None:
        for jobs, store in self._open.values():
            jobs.close()
            store.close()
        self._open.clear()


def _told(call: Callable[[], T]) -> T:
    """The answer; a file that cannot be read as an error for people."""
    try:
        return call()
    except OSError as error:
        raise OstrainError("a file of the job cannot be read", why=str(error), exit_code=2) from error


def _of_node(error: OstrainError, node: str) -> NodeError:
    """An error of the whole job as one of a node; each node has an object of its own."""
    if isinstance(error, CloudError):
        return as_node_error(error, node)
    kind = error.kind if isinstance(error, NodeError) else "protocol"
    return NodeError(
        kind, error.what, node=node, why=error.why, next_step=error.next_step, exit_code=int(error.exit_code)
    )


def _no_run(node: str) -> NodeError:
    return NodeError("no_run", "ModelArts has no job of this run", node=node)


def _inside(path: str, node: str) -> str:
    if not path or path.startswith("/") or ".." in path.split("/"):
        raise NodeError("protocol", "a file outside the run directory", node=node, why=repr(path))
    return path


def _hash(store: ObsStore, key: str, size: int) -> str:
    """SHA-256 of an object, which is read for it."""
    digest = hashlib.sha256()
    for offset in range(0, size, PORTION):
        digest.update(store.get(key, offset, PORTION) or b"")
    return digest.hexdigest()


def open_backend() -> ModelArtsBackend:
    return ModelArtsBackend()
