"""One run on ModelArts: its objects in the bucket and its jobs. The bucket is the run's memory: any client with keys
can go on where another died."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cluster.backend import RunRef
from cluster.bundle import AGENT, build_source, hash_file
from cluster.modelarts import Job, TrainingJobs
from cluster.modelarts_inventory import ModelArts
from cluster.modelarts_job import Places, create_body, job_name
from cluster.modelarts_status import Attempt
from cluster.obs import ObsStore
from cluster.sealed import seal
from ostrain.plan import LaunchPlan

HERE = Path(__file__).parent
STARTERS = ("__init__.py", "modelarts_start.py", "modelarts_mirror.py", "modelarts_place.py")
READERS = 16  # threads that read small objects
FORGOTTEN = 120.0  # seconds after which a job that nobody finds was never made


class ServiceRun:
    """A run's side of the bucket and of the training API."""

    def __init__(self, run: RunRef, section: ModelArts, jobs: TrainingJobs, store: ObsStore) -> None:
        self.run, self.section, self.jobs, self.store = run, section, jobs, store
        self.places = Places.of(section, run.run_id)

    # What containers get

    def stage(self, bundle: Path) -> None:
        """The code folder: start, agent, plan, archives. Archives that the bucket has are copied inside of it."""
        for name, archive in archives(self.run.plan, bundle).items():
            kind, digest = name.removesuffix(".tar.gz").split("-", 1)
            shared, own = self.places.archive(kind, digest), f"{self.places.code}/{name}"
            size = archive.stat().st_size
            if self.store.size(own) == size:
                continue
            if self.store.size(shared) != size:
                self.store.put(shared, archive)
            self.store.copy(shared, own)
        for name, content in code_files(self.run.run_id, self.run.plan, bundle).items():
            self.store.put(f"{self.places.code}/{name}", content)
        # The platform brings this folder into containers: it has to be there.
        self.store.put(f"{self.places.out}/.keep", b"")

    def start(self, number: int, secrets: Mapping[str, str]) -> Job:
        """Make the attempt's job. The record of the intent comes first: whatever happens, the job is found again."""
        sealed = seal(secrets) if secrets else None
        if sealed is not None:
            self.store.put(self._pad(number), sealed.pad)
        created = time.time()
        self._write(number, created, None)
        body = create_body(self.run.plan, self.run.run_id, number, sealed.environment if sealed else {})
        job = self.jobs.create(body)
        self._write(number, created, job.id)
        return job

    # What is known

    def newest(self) -> int | None:
        """Number of the newest attempt; None when none was ever started."""
        prefix = f"{self.places.run}/attempts/"
        names = [entry.key[len(prefix) :].partition(".")[0] for entry in self.store.list(prefix)]
        return max((int(name) for name in names if name.isdigit()), default=None)

    def attempt(self) -> Attempt | None:
        """The newest attempt with its job as it is now."""
        number = self.newest()
        if number is None:
            return None
        record = self._read(number)
        created = float(record.get("created") or 0.0)
        job_id = record.get("job")
        if not isinstance(job_id, str):
            found = self.jobs.find(job_name(self.run.run_id, number))
            if not found and time.time() - created > FORGOTTEN:
                return None
            job = found[0] if found else None
            if job is not None:
                self._write(number, created, job.id, bool(record.get("cancelled")))
        else:
            job = self.jobs.show(job_id)
        return Attempt(number, created, job, bool(record.get("cancelled")))

    def note_cancel(self, attempt: Attempt) -> None:
        """Tell later clients that the job's end was wanted."""
        self._write(attempt.number, attempt.created, attempt.job.id if attempt.job else None, True)

    def records(self) -> dict[str, dict[str, Any]]:
        """node -> what its container handed over last."""
        with ThreadPoolExecutor(READERS) as pool:
            names = [node.name for node in self.run.plan.nodes]
            found = dict(zip(names, pool.map(self._status, names), strict=True))
        return {name: record for name, record in found.items() if record}

    def _status(self, node: str) -> dict[str, Any]:
        return _object(self.store.get(f"{self.places.out}/{node}/status.json"))

    def folder(self, node: str) -> str:
        """Prefix of a node's run directory."""
        return f"{self.places.out}/{node}/run/"

    # The end

    def forget_secrets(self) -> None:
        """Delete the pads: the halves that jobs' environments hold are noise from now on."""
        self.store.delete([entry.key for entry in self.store.list(f"{self.places.code}/sealed-")])

    def delete(self) -> None:
        """Delete all jobs and objects of the run."""
        for entry in list(self.store.list(f"{self.places.run}/attempts/")):
            job = _object(self.store.get(entry.key)).get("job")
            if isinstance(job, str):
                self.jobs.delete(job)
        # Records go last: as long as one is there, a removal that broke off can be repeated.
        keys = [entry.key for entry in self.store.list(f"{self.places.run}/")]
        records = [key for key in keys if key.startswith(f"{self.places.run}/attempts/")]
        self.store.delete([key for key in keys if key not in set(records)])
        self.store.delete(records)

    def _pad(self, number: int) -> str:
        return f"{self.places.code}/sealed-{number}"

    def _read(self, number: int) -> dict[str, Any]:
        return _object(self.store.get(self.places.attempt(number)))

    def _write(self, number: int, created: float, job: str | None, cancelled: bool = False) -> None:
        name = job_name(self.run.run_id, number)
        record = {"attempt": number, "name": name, "created": created, "job": job, "cancelled": cancelled}
        self.store.put(self.places.attempt(number), json.dumps(record).encode())


def archives(plan: LaunchPlan, bundle: Path) -> dict[str, Path]:
    """Name in the code folder -> archive here: the bundle and the job's files."""
    found = {f"bundles-{hash_file(bundle)}.tar.gz": bundle}
    for source in plan.sources.values():
        archive = build_source(Path(source))
        found[f"files-{hash_file(archive)}.tar.gz"] = archive
    return found


def code_files(run_id: str, plan: LaunchPlan, bundle: Path) -> dict[str, bytes]:
    """Name in the code folder -> content, of everything that is no archive."""
    section = ModelArts.model_validate(plan.service)
    first = plan.nodes[0]
    start = next(file for file in first.files if file.path == "start.sh")
    nodes = [
        {
            "name": node.name,
            "ranks": list(node.ranks),
            "devices": list(node.devices),
            "command": list(node.command),
            "files": [
                {"path": file.path, "text": file.text, "mode": file.mode} for file in node.files if file is not start
            ],
        }
        for node in plan.nodes
    ]
    links = {name: hash_file(build_source(Path(source))) for name, source in plan.sources.items()}
    settings = {
        "run_id": run_id, "root": first.access.root, "steps": plan.steps, "master_port": plan.master_port,
        "bundle": hash_file(bundle), "links": links, "nodes": nodes, "sync": section.sync, "wait": section.wait,
    }  # fmt: skip
    files = {f"start/cluster/{name}": (HERE / name).read_bytes() for name in STARTERS}
    files |= {"agent.py": AGENT.read_bytes(), "start.sh": start.text.encode()}
    files["start.json"] = json.dumps(settings).encode()
    return files


def _object(data: bytes | None) -> dict[str, Any]:
    """A JSON object; {} for what is missing, or not whole yet."""
    try:
        value = json.loads(data) if data else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
