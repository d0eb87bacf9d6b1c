"""A stand-in of ModelArts' training jobs: it checks signatures, paths and every field of a body, and runs a job's
containers as processes of this machine, with the platform's variables and its copying from and to OBS.

Signatures and the schema are written down here from the API reference, not taken from the client's library.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import signal
import subprocess
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.cluster.cloud_server import ACCESS_KEY, SECRET_KEY, Answer, Request, Service
from tests.cluster.obs_service import BUCKET, ObsService

PROJECT = "0123456789abcdef0123456789abcdef"
Json = dict[str, Any]

# Field -> what it holds: a type, a pattern, a nested schema, [schema] for lists, {} for free text maps. "?" optional.
_OBS = {"obs": {"obs_url": re.compile(r"/[^/]+/.+/\Z")}}
_CHANNEL = {
    "name": str,
    "local_dir": re.compile(r"/home/.+"),
    "access_method": re.compile("env|parameter"),
    "remote": _OBS,
}
SCHEMA: Json = {
    "kind": re.compile("job"),
    "metadata": {
        "name": re.compile(r"[A-Za-z0-9_-]{1,64}"),
        "workspace_id?": str,
        "description?": re.compile(r".{0,256}"),
        "annotations?": {"fault-tolerance/job-retry-num?": re.compile(r"\d{1,3}")},
    },
    "algorithm": {
        "code_dir": re.compile(r"/[^/]+/.+/\Z"),
        "command": str,
        "engine": {"image_url?": re.compile(r"[^:]+:[^:]+"), "engine_name?": str, "engine_version?": str},
        "inputs?": [_CHANNEL],
        "outputs?": [_CHANNEL],
        "environments?": {},
    },
    "spec": {
        "resource": {"flavor_id?": str, "pool_id?": str, "node_count": int},
        "volumes?": [
            {
                "nfs?": {"nfs_server_path": str, "local_path": str, "read_only": bool},
                "pfs?": {"pfs_path": str, "local_path": str},
                "obs?": {"obs_path": str, "local_path": str},
            }
        ],
        "log_export_path?": {"obs_url": re.compile(r"/.+/\Z")},
        "auto_stop?": {"time_unit": re.compile("HOURS"), "duration": int},
        "schedule_policy?": {"priority": int},
    },
}


def schema_problems(schema: Any, value: Any, path: str = "body") -> list[str]:
    """Every way in which a body is not as documented: wrong types, missing and unknown fields."""
    if isinstance(schema, re.Pattern):
        return [] if isinstance(value, str) and schema.fullmatch(value) else [f"{path} is {value!r}"]
    if isinstance(schema, type):
        return [] if type(value) is schema else [f"{path} is no {schema.__name__}: {value!r}"]
    if isinstance(schema, list):
        if not isinstance(value, list) or not value:
            return [f"{path} is no list with something in it"]
        return [found for i, one in enumerate(value) for found in schema_problems(schema[0], one, f"{path}[{i}]")]
    if not isinstance(value, dict):
        return [f"{path} is no object"]
    if not schema:
        return _environment_problems(value, path)
    known = {name.rstrip("?"): part for name, part in schema.items()}
    found = [f"{path}.{name} is unknown" for name in value if name not in known]
    found += [f"{path}.{name} is missing" for name in schema if not name.endswith("?") and name not in value]
    return found + [
        one
        for name, part in known.items()
        if name in value
        for one in schema_problems(part, value[name], f"{path}.{name}")
    ]


def _environment_problems(value: Json, path: str) -> list[str]:
    found = [] if len(value) <= 100 else [f"{path} has {len(value)} pairs"]
    for name, text in value.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name.startswith("MA_"):
            found.append(f"{path}: {name!r} is no name")
        if not isinstance(text, str) or len(text) > 4096 or "$" in text:
            found.append(f"{path}.{name} is no text of at most 4096 letters")
    return found


@dataclass
class TrainingJob:
    id: str
    body: Json
    phase: str = "Pending"
    created: float = field(default_factory=time.time)
    ended: float = 0.0
    containers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)
    stopping: bool = False

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])


class ModelArtsService(Service):
    """place: folder of the containers' files. hold: jobs stay in the queue while it is set."""

    def __init__(self, obs: ObsService, place: Path) -> None:
        super().__init__()
        self.obs, self.place = obs, place
        self.jobs: dict[str, TrainingJob] = {}
        self.hold = False
        self.run_containers = True
        self.extra: dict[str, str] = {}

    # Requests

    def check(self, request: Request) -> str:
        told = re.fullmatch(
            r"SDK-HMAC-SHA256 Access=(\S+), SignedHeaders=(\S+), Signature=([0-9a-f]{64})",
            request.headers.get("authorization", ""),
        )
        if told is None or told[1] != ACCESS_KEY:
            return "no such access key"
        names = told[2].split(";")
        if not {"host", "x-sdk-date"} <= set(names) or names != sorted(names):
            return f"the signed headers are {names}"
        if request.headers.get("x-project-id") != PROJECT:
            return "X-Project-Id is not the project"
        path = "/".join(quote(part, safe="~") for part in request.path.split("/"))
        query = "&".join(f"{quote(k, safe='~')}={quote(v, safe='~')}" for k, v in sorted(request.query))
        lines = [f"{name}:{request.headers.get(name, '').strip()}\n" for name in names]
        canonical = [request.method, path if path.endswith("/") else path + "/", query, "".join(lines)]
        canonical += [told[2], hashlib.sha256(request.body).hexdigest()]
        digest = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
        text = f"SDK-HMAC-SHA256\n{request.headers['x-sdk-date']}\n{digest}"
        wanted = hmac.new(SECRET_KEY.encode(), text.encode(), hashlib.sha256).hexdigest()
        return "" if hmac.compare_digest(wanted, told[3]) else "the signature is wrong"

    def refuse(self, status: int, code: str, text: str) -> Answer:
        body = json.dumps({"error_code": code, "error_msg": text}).encode()
        return Answer(status, body, {"Content-Type": "application/json", "X-Request-Id": "req-1"})

    def handle(self, request: Request) -> Answer:
        parts = request.path.strip("/").split("/")
        if parts[:2] != ["v2", PROJECT]:
            return self.refuse(404, "APIGW.0101", f"no such API: {request.path}")
        with self.lock:
            match request.method, parts[2:]:
                case "POST", ["training-jobs"]:
                    return self._create(json.loads(request.body))
                case "POST", ["training-job-searches"]:
                    return self._search(json.loads(request.body))
                case _, ["training-jobs", job, *rest] if job in self.jobs:
                    return self._of_job(request, self.jobs[job], rest)
        return self.refuse(404, "ModelArts.0104", "the job does not exist")

    def _of_job(self, request: Request, job: TrainingJob, rest: list[str]) -> Answer:
        match request.method, rest:
            case "GET", []:
                return _json(200, self._shown(job))
            case "DELETE", []:
                if job.phase in ("Pending", "Running", "Terminating"):
                    return self.refuse(400, "ModelArts.2765", "the job runs")
                del self.jobs[job.id]
                return Answer(202)
            case "POST", ["actions"]:
                if json.loads(request.body) != {"action_type": "terminate"}:
                    return self.refuse(400, "ModelArts.0102", "unknown action")
                if job.phase not in ("Pending", "Running"):
                    return self.refuse(400, "ModelArts.2766", f"a job that is {job.phase} cannot be stopped")
                self._terminate(job)
                return _json(202, self._shown(job))
            case "GET", ["tasks", task, "logs", "preview"]:
                log = self.place / job.id / task / "log"
                data = log.read_bytes() if log.exists() else b""
                tail = data[-200:]  # the service gives 5 MB
                body = {"content": tail.decode("utf-8", "replace"), "current_size": len(tail), "full_size": len(data)}
                return _json(200, body)
        return self.refuse(404, "APIGW.0101", f"no such API: {request.path}")

    def _create(self, body: Json) -> Answer:
        found = schema_problems(SCHEMA, body)
        engine, resource = body["algorithm"]["engine"], body["spec"]["resource"]
        if ("image_url" in engine) == ("engine_name" in engine):
            found.append("an image or an engine")
        if "flavor_id" not in resource and "pool_id" not in resource:
            found.append("neither flavor nor pool")
        if found:
            self.problems += found
            return self.refuse(400, "ModelArts.0102", "; ".join(found))
        job = TrainingJob(str(uuid.uuid4()), body)
        self.jobs[job.id] = job
        threading.Thread(target=self._live, args=(job,), daemon=True).start()
        return _json(201, self._shown(job))

    def _search(self, body: Json) -> Answer:
        condition = {"key": re.compile("name"), "operator": re.compile("like"), "value": [str]}
        schema = {"offset": int, "limit": int, "sort_by?": str, "order?": str, "workspace_id?": str}
        schema = {**schema, "filters?": [condition]}
        if body.get("filters") == []:
            del body["filters"]
        found = schema_problems(schema, body, "search")
        if found:
            self.problems += found
            return self.refuse(400, "ModelArts.0102", "; ".join(found))
        words = [value for one in body.get("filters", []) for value in one["value"]]
        jobs = [job for job in self.jobs.values() if all(word in job.name for word in words)]
        items = [self._shown(job) for job in sorted(jobs, key=lambda job: -job.created)]
        return _json(200, {"total": len(items), "count": len(items), "limit": 50, "offset": 0, "items": items})

    def _shown(self, job: TrainingJob) -> Json:
        count = job.body["spec"]["resource"]["node_count"]
        started = int(job.created * 1000)
        status: Json = {
            "phase": job.phase, "secondary_phase": job.phase, "tasks": [f"worker-{i}" for i in range(count)],
            "start_time": started, "duration": int((job.ended or time.time()) * 1000) - started,
        }  # fmt: skip
        if job.codes:
            ends = [{"task": task, "exit_code": code, "message": "exited"} for task, code in job.codes.items()]
            status["task_statuses"] = ends
        metadata = {**job.body["metadata"], "id": job.id, "create_time": started}
        return {
            "kind": "job",
            "metadata": metadata,
            "status": status,
            "spec": {"resource": job.body["spec"]["resource"]},
        }

    # The platform behind the API

    def _terminate(self, job: TrainingJob) -> None:
        job.stopping = True
        if job.phase == "Pending":
            job.phase, job.ended = "Terminated", time.time()
            return
        job.phase = "Terminating"
        for container in job.containers:
            if container.poll() is None:
                container.send_signal(signal.SIGTERM)

    def _live(self, job: TrainingJob) -> None:
        while self.hold and not job.stopping:
            time.sleep(0.02)
        with self.lock:
            if job.stopping or not self.run_containers:
                return
            job.containers = [self._container(job, i) for i in range(job.body["spec"]["resource"]["node_count"])]
            job.phase = "Running"
        while any(container.poll() is None for container in job.containers):
            self._copy_outputs(job)
            time.sleep(0.05)
        self._copy_outputs(job)
        with self.lock:
            job.codes = {f"worker-{i}": container.returncode for i, container in enumerate(job.containers)}
            good = not any(job.codes.values())
            job.phase = "Terminated" if job.stopping else "Completed" if good else "Failed"
            job.ended = time.time()

    def _container(self, job: TrainingJob, index: int) -> subprocess.Popen[bytes]:
        home, algorithm = self.place / job.id / f"worker-{index}", job.body["algorithm"]
        self._bring(algorithm["code_dir"], home / "code")
        env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | algorithm["environments"]
        for kind, bring in (("inputs", True), ("outputs", False)):
            for channel in algorithm.get(kind, []):
                folder = home / channel["name"]
                folder.mkdir()
                env[channel["name"]] = str(folder)
                if bring:
                    self._bring(channel["remote"]["obs"]["obs_url"], folder)
        count = job.body["spec"]["resource"]["node_count"]
        env |= {
            "MA_NUM_HOSTS": str(count), "VC_WORKER_NUM": str(count), "VC_TASK_INDEX": str(index), "MA_NUM_GPUS": "8",
            "VC_WORKER_HOSTS": ",".join(["localhost"] * count), "MA_TASK_NAME": "worker",
            "RANK_TABLE_FILE": "/user/config", **self.extra,
        }  # fmt: skip
        command = algorithm["command"].replace("/home/ma-user/modelarts/user-job-dir/code", str(home / "code"))
        with open(home / "log", "wb") as log:
            return subprocess.Popen(
                ["bash", "-c", f"exec {command}"], cwd=home, env=env, stdout=log, stderr=log, start_new_session=True
            )

    def _bring(self, url: str, folder: Path) -> None:
        """A folder of the bucket into a container, as the platform does before a start."""
        prefix = url.removeprefix(f"/{BUCKET}/")
        with self.obs.lock:
            found = {key[len(prefix) :]: data for key, data in self.obs.objects.items() if key.startswith(prefix)}
        for name, data in found.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def _copy_outputs(self, job: TrainingJob) -> None:
        for index in range(len(job.containers)):
            for channel in job.body["algorithm"].get("outputs", []):
                folder = self.place / job.id / f"worker-{index}" / channel["name"]
                prefix = channel["remote"]["obs"]["obs_url"].removeprefix(f"/{BUCKET}/")
                for path in folder.rglob("*"):
                    try:
                        data = path.read_bytes() if path.is_file() and not path.name.startswith(".tmp-") else None
                    except FileNotFoundError:  # replaced meanwhile
                        continue
                    if data is not None:
                        with self.obs.lock:
                            self.obs.objects[prefix + str(path.relative_to(folder))] = data

    def close(self) -> None:
        """End every container that is left; bounded."""
        for job in list(self.jobs.values()):
            for container in job.containers:
                if container.poll() is None:
                    container.terminate()
        for job in list(self.jobs.values()):
            for container in job.containers:
                try:
                    container.wait(15.0)
                except subprocess.TimeoutExpired:
                    container.kill()
                    container.wait(5.0)


def _json(status: int, body: Json) -> Answer:
    return Answer(status, json.dumps(body).encode(), {"Content-Type": "application/json"})
