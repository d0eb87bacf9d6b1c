"""The backend ``slurm``: a run is a batch job that holds one agent on every node of its allocation.

Everything but Slurm's own commands goes through files on the file system that login machine and nodes share, so a
client needs no connection to a node. docs/slurm.md tells what happens when.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.backend import FollowItem, NodeError, PerNode, RunRef
from cluster.bundle import build_source, hash_file
from cluster.client import AgentClient
from cluster.local_backend import local_root
from cluster.slurm import Slurm, SlurmJob
from cluster.slurm_follow import follow_once, follow_run
from cluster.slurm_inventory import SlurmSection
from cluster.slurm_verdict import FINAL, merged, needs_slurm, retried, settling
from cluster.transport import Stream, Transport
from ostrain.plan import LaunchPlan, NodeAccess

COMPANION = Path(__file__).with_name("slurm_agent.py")
LOGIN = "login"
PATIENCE = 3.0  # seconds agents have to hear of a wish through the file system before Slurm signals them
KILL_WAIT = 45.0  # seconds Slurm may take to end a job: KillWait is 30 by default


class Place:
    """The login machine as one plan sees it: transport, agent, companion, Slurm's commands."""

    def __init__(self, plan: LaunchPlan) -> None:
        self.section = SlurmSection.model_validate(plan.service.get("section") or {})
        access = plan.nodes[0].access
        python = self.section.login_python or access.python
        transport = _transport(self.section, access)
        root = local_root(access) if self.section.login is None else access.root
        self.agent = AgentClient(transport, python, root)
        self.companion = self.agent.beside(COMPANION)
        self.slurm = Slurm(transport, self.section)

    def ask(self, verb: str, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """A verb of the companion."""
        return self.companion.call(verb, self.agent.file(timeout), input=request, timeout=timeout)

    def runs(self, run_id: str, timeout: float = 30.0) -> str:
        return f"{self.agent.root(timeout)}/runs/{run_id}"


def _transport(section: SlurmSection, access: NodeAccess) -> Transport:
    login = section.login
    if login is None:
        from cluster.local import LocalTransport

        return LocalTransport(LOGIN)
    from cluster.ssh import SSHTransport

    reached = NodeAccess(login.host, login.user or "", login.port or 0, login.identity_file or "", access.root)
    return SSHTransport(LOGIN, reached)


class SlurmBackend:
    """See ``cluster.backend.Backend``. Nodes of a plan are places in an allocation: ``node-0`` is its first host."""

    name = "slurm"

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}

    def _place(self, plan: LaunchPlan) -> Place:
        key = json.dumps([plan.service.get("section"), plan.nodes[0].access.root, plan.nodes[0].access.python])
        if key not in self._places:
            self._places[key] = Place(plan)
        return self._places[key]

    def _batch(
        self, run: RunRef, verb: str, inputs: Mapping[str, dict[str, Any]], timeout: float
    ) -> PerNode[dict[str, Any]]:
        """A verb of the agent for the directories of several nodes, in one process on the login machine."""
        return self._looked(run, verb, inputs, timeout)[0]

    def _looked(
        self, run: RunRef, verb: str, inputs: Mapping[str, dict[str, Any]], timeout: float
    ) -> tuple[PerNode[dict[str, Any]], dict[str, Any]]:
        """As ``_batch``, with what is noted of the newest submission: jobs and the attempt they were for."""
        place = self._place(run.plan)
        folder = place.runs(run.run_id, timeout)
        calls = [{"verb": verb, "arguments": [f"{folder}/{name}"], "input": value} for name, value in inputs.items()]
        told = place.ask("batch", {"calls": calls, "first": f"{folder}/{run.plan.nodes[0].name}"}, timeout)
        found: PerNode[dict[str, Any]] = {}
        for name, answer in zip(inputs, told["answers"], strict=True):
            found[name] = _of_node(place.agent, name, answer["error"]) if "error" in answer else answer
        return found, dict(told["noted"])

    def probe(self, plan: LaunchPlan, *, timeout: float = 30.0) -> PerNode[dict[str, Any]]:
        """The login machine, its space, and Slurm's own opinion on the job. What nodes lack shows at the start."""
        try:
            place = self._place(plan)
            wanted = {"root": place.agent.root(timeout), "min_free_bytes": plan.checks.get("min_free_bytes", 0)}
            answer = place.agent.call("probe", input=wanted, timeout=timeout)
            if answer["problems"]:
                raise place.agent.as_error(answer["problems"][0])
            answer["slurm"] = place.slurm.version()
            answer["expected"] = place.slurm.test(_script(plan))
        except NodeError as error:
            return _everywhere(plan, error)
        return {node.name: answer for node in plan.nodes}

    def stage(self, run: RunRef, bundle: Path, *, timeout: float = 600.0) -> PerNode[None]:
        archives = {("bundles", hash_file(bundle)): bundle}
        links: dict[str, str] = {}
        for name, source in run.plan.sources.items():
            archive = build_source(Path(source))
            links[name] = hash_file(archive)
            archives["files", links[name]] = archive
        requests = {}
        for node in run.plan.nodes:
            files = [{"path": file.path, "text": file.text, "mode": file.mode} for file in node.files]
            requests[node.name] = {"run_id": run.run_id, "node": node.name, "bundle": next(iter(archives))[1],
                                   "files": files, "links": links}  # fmt: skip
        try:
            _send_missing(self._place(run.plan).agent, archives, timeout)
            answers = self._batch(run, "stage", requests, timeout)
        except NodeError as error:
            return _everywhere(run.plan, error)
        return {name: one if isinstance(one, NodeError) else None for name, one in answers.items()}

    def start(self, run: RunRef, attempt: int, secrets: Mapping[str, str], *, timeout: float = 60.0) -> PerNode[None]:
        """Leave the agents' requests in the run directories and submit; with ``attempts`` one job behind another."""
        try:
            self._submit(run, attempt, secrets, timeout)
        except NodeError as error:
            return _everywhere(run.plan, error)
        return {node.name: None for node in run.plan.nodes}

    def _submit(self, run: RunRef, attempt: int, secrets: Mapping[str, str], timeout: float) -> None:
        place, count = self._place(run.plan), int(run.plan.service.get("attempts", 1))
        folder = place.runs(run.run_id, timeout)
        files = [place.agent.file(timeout), place.companion.file(timeout)]
        orders = {f"{folder}/{name}": order for name, order in self._orders(run, attempt, files).items()}
        place.ask("order", {"orders": orders, "secrets": dict(secrets)}, timeout)
        jobs: list[str] = []
        try:
            home = f"{folder}/{run.plan.nodes[0].name}"
            for _ in range(count):
                script = f"{home}/sbatch.sh"
                after = jobs[-1] if jobs else ""
                jobs.append(place.slurm.submit(script, files, name=run.run_id, folder=home, after=after))
            place.ask("note", {"run_dir": home, "jobs": jobs, "attempt": attempt}, timeout)
        except BaseException:
            place.slurm.cancel(jobs)
            raise

    def _orders(self, run: RunRef, attempt: int, files: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The request of every node's agent (``agent/request.json``)."""
        plan, section = run.plan, self._place(run.plan).section
        names = [node.name for node in plan.nodes]
        shared = {
            "run_id": run.run_id,
            "attempt": attempt,
            "nodes": names,
            "steps": plan.steps,
            "master_port": plan.master_port,
            "interface": plan.service.get("interface", ""),
            "grace": 5.0,
            "why": [files[1], "why", files[0]],
            "again": section.requeue or "attempts" in plan.service,
            "retry": retried(plan.service),
            "shared": f"{files[0].rpartition('/bin/')[0]}/runs/{run.run_id}/{names[0]}/agent",
            "where": {"scheduler": "slurm"},
        }
        return {
            node.name: {**shared, "node": node.name, "command": list(node.command), "ranks": list(node.ranks)}
            for node in plan.nodes
        }

    def poll(self, run: RunRef, *, timeout: float = 15.0) -> PerNode[dict[str, Any]]:
        try:
            answers, noted = self._looked(run, "status", {node.name: {} for node in run.plan.nodes}, timeout)
            statuses = {name: one for name, one in answers.items() if not isinstance(one, NodeError)}
            if len(statuses) < len(answers):
                return answers
            if not needs_slurm(list(statuses.values()), int(noted["attempt"])):
                ended = {"scheduler": {"scheduler": "slurm", "live": False}}
                return {name: {**status, **ended} for name, status in statuses.items()}
            return self._with_slurm(run, statuses, noted, timeout)
        except NodeError as error:
            return _everywhere(run.plan, error)

    def _with_slurm(
        self, run: RunRef, statuses: dict[str, Any], noted: dict[str, Any], timeout: float
    ) -> PerNode[dict[str, Any]]:
        jobs, asked = self._jobs(run, noted)
        verdict = settling(list(statuses.values()), jobs, asked)
        if verdict is not None:
            self._settle(run, verdict.attempt, verdict.reason, verdict.what, timeout)
            again = self._batch(run, "status", {name: {} for name in statuses}, timeout)
            statuses = {name: one for name, one in again.items() if not isinstance(one, NodeError)}
        requeue = self._place(run.plan).section.requeue
        told = merged(statuses, jobs, asked, retried(run.plan.service), requeue)
        answers: PerNode[dict[str, Any]] = dict(told)
        suspended = any(job.state in ("SUSPENDED", "STOPPED") for job in jobs)
        for name, status in statuses.items():
            silence = status["agent"].get("silence", 0)
            if status["state"] == "RUNNING" and not status["agent"]["alive"] and not suspended:
                what = f"the agent has given no sign of life for {silence} s, though its job runs"
                answers[name] = NodeError("unreachable", what, node=name, next_step=f"ostrain cancel {run.run_id}")
        return answers

    def _jobs(self, run: RunRef, noted: Mapping[str, Any]) -> tuple[list[SlurmJob], int]:
        """The jobs of the newest submission, oldest first, and the attempt they were submitted for. A submission that
        was not noted, because the client died, is found by its name."""
        place = self._place(run.plan)
        known = {job.job: job for job in place.slurm.jobs(run.run_id)}
        oldest = int(noted["jobs"][0]) if noted["jobs"] else 0
        jobs = [job for name, job in known.items() if int(name) >= oldest or job.live]
        if not jobs and noted["jobs"]:
            # Slurm forgets jobs some minutes after their end; a chain's later ones only ever ended after the first.
            found = [one for one in map(place.slurm.ended, noted["jobs"]) if one is not None]
            jobs = found or [SlurmJob(noted["jobs"][-1], "COMPLETED", "")]
        return jobs, max(1, int(noted["attempt"]))

    def _settle(self, run: RunRef, attempt: int, reason: str, what: str, timeout: float) -> dict[str, Any]:
        place = self._place(run.plan)
        dirs = self._dirs(run, timeout)
        request = {"run_dirs": dirs, "attempt": attempt, "reason": reason, "what": what, "last": True}
        return dict(place.ask("settle", request, timeout)["nodes"])

    def _dirs(self, run: RunRef, timeout: float) -> list[str]:
        folder = self._place(run.plan).runs(run.run_id, timeout)
        return [f"{folder}/{node.name}" for node in run.plan.nodes]

    def follow(
        self,
        run: RunRef,
        cursors: Mapping[str, Mapping[str, int]],
        patterns: tuple[str, ...],
        *,
        until_final: bool = True,
    ) -> Iterator[FollowItem]:
        place = self._place(run.plan)

        def open_group(request: dict[str, Any]) -> Stream:
            names = [node.name for node in run.plan.nodes]
            arguments = (place.agent.file(15.0), place.runs(run.run_id), *names)
            return place.companion.stream("follow", *arguments, request=request, timeout=15.0)

        if until_final:
            return follow_run(open_group, lambda: self.poll(run), cursors, patterns)
        return follow_once(open_group, cursors, patterns)

    def fetch(self, run: RunRef, node: str, path: str, *, limit: int = 64 << 20, offset: int = 0) -> bytes:
        place = self._place(run.plan)
        run_dir = f"{place.runs(run.run_id)}/{node}"
        request = {"path": path, "limit": limit, "offset": offset}
        return base64.b64decode(place.agent.call("fetch", run_dir, input=request, timeout=120.0)["data"])

    def files(
        self, run: RunRef, patterns: tuple[str, ...], *, hashes: bool = False, timeout: float = 60.0
    ) -> PerNode[dict[str, Any]]:
        request = {"patterns": list(patterns), "hash": hashes}
        try:
            answers = self._batch(run, "files", {node.name: request for node in run.plan.nodes}, timeout)
        except NodeError as error:
            return _everywhere(run.plan, error)
        return {name: one if isinstance(one, NodeError) else dict(one["files"]) for name, one in answers.items()}

    def stop(self, run: RunRef, *, grace: float = 10.0, reason: str = "cancelled") -> PerNode[dict[str, Any]]:
        """Ask the agents to end their processes; then, and for jobs that wait, Slurm. A failed node's peers are ended
        by their agents, and Slurm may have another attempt in its queue: ``peer_failed`` leaves jobs alone."""
        try:
            return self._stop(run, grace, reason)
        except NodeError as error:
            return _everywhere(run.plan, error)

    def _stop(self, run: RunRef, grace: float, reason: str) -> PerNode[dict[str, Any]]:
        place, timeout = self._place(run.plan), grace + 30.0
        jobs, asked = self._jobs(run, self._looked(run, "status", {}, timeout)[1])
        dirs = self._dirs(run, timeout)
        lasting = reason == "peer_failed" and ("attempts" in run.plan.service or place.section.requeue)
        if not lasting:
            place.slurm.cancel([job.job for job in jobs if job.waiting])
        place.ask("ask", {"run_dirs": dirs, "reason": reason, "grace": grace}, timeout)
        left = [] if lasting else [job.job for job in jobs if job.live and not job.waiting]
        over = self._wait_until_over(run, grace, left)
        answers: PerNode[dict[str, Any]] = {}
        for name in (node.name for node in run.plan.nodes):
            answers[name] = {"killed": [], "survivors": [], "state": "NONE"}
        if over and not lasting:
            statuses = self._batch(run, "status", {node.name: {} for node in run.plan.nodes}, timeout)
            told = [one for one in statuses.values() if not isinstance(one, NodeError)]
            begun = max((int(one["attempt"]) for one in told), default=0)
            if told and (jobs or begun):
                text = "ended before it had begun" if not begun else "ended on request"
                answers.update(self._settle(run, max(begun, asked), reason, text, timeout))
        elif not over:
            stuck = {"pid": 0, "state": "D", "command": f"job {', '.join(left)} is still ending in Slurm"}
            answers = {name: {"killed": [], "survivors": [stuck], "state": "RUNNING"} for name in answers}
        return answers

    def _wait_until_over(self, run: RunRef, grace: float, jobs: Sequence[str]) -> bool:
        """Wait for the agents' last words, push where they do not come, and see that Slurm has done with the jobs."""
        place, begin = self._place(run.plan), time.monotonic()
        signalled = cancelled = False
        while jobs:
            live = {job.job: job for job in place.slurm.jobs(run.run_id) if job.live and job.job in jobs}
            if not live:
                break
            passed = time.monotonic() - begin
            final = self._all_final(run)
            if not signalled and not final and passed > min(PATIENCE, grace):
                place.slurm.cancel(list(live), signal="TERM")
                signalled = True
            if not cancelled and (final or passed > grace + PATIENCE):
                place.slurm.cancel(list(live))
                cancelled = True
            if passed > grace + PATIENCE + KILL_WAIT:
                return False
            time.sleep(0.3)
        return True

    def _all_final(self, run: RunRef) -> bool:
        statuses = self._batch(run, "status", {node.name: {} for node in run.plan.nodes}, 15.0)
        return all(isinstance(one, NodeError) or one["state"] in FINAL for one in statuses.values())

    def remove(self, run: RunRef, *, timeout: float = 60.0) -> PerNode[None]:
        try:
            live = [job.job for job in self._jobs(run, self._looked(run, "status", {}, timeout)[1])[0] if job.live]
            if live:
                what = f"the run still has jobs in Slurm: {', '.join(live)}"
                step = f"ostrain cancel {run.run_id}"
                return _everywhere(run.plan, NodeError("protocol", what, node=LOGIN, next_step=step))
            answers = self._batch(run, "remove", {node.name: {} for node in run.plan.nodes}, timeout)
        except NodeError as error:
            return _everywhere(run.plan, error)
        return {name: one if isinstance(one, NodeError) else None for name, one in answers.items()}

    def close(self) -> None:
        for place in self._places.values():
            place.agent.close()


def _script(plan: LaunchPlan) -> str:
    return next(file.text for file in plan.nodes[0].files if file.path == "sbatch.sh")


def _everywhere(plan: LaunchPlan, error: NodeError) -> PerNode[Any]:
    """What happened to the login machine happened to every node."""
    return {node.name: error for node in plan.nodes}


def _of_node(client: AgentClient, node: str, info: dict[str, str]) -> NodeError:
    error = client.as_error(info)
    why, step = info.get("why", ""), info.get("next", "")
    return NodeError(error.kind, error.what, node=node, why=why, next_step=step, exit_code=error.exit_code)


def _send_missing(client: AgentClient, archives: Mapping[tuple[str, str], Path], timeout: float) -> None:
    """Unpack under the shared root what is not there by content hash."""
    wanted: dict[str, list[str]] = {"bundles": [], "files": []}
    for kind, digest in archives:
        wanted[kind].append(digest)
    for kind, digest in client.call("have", input=wanted, timeout=timeout)["missing"]:
        with open(archives[kind, digest], "rb") as archive:
            client.call("unpack", kind, digest, input=archive, timeout=timeout)


def open_backend() -> SlurmBackend:
    return SlurmBackend()
