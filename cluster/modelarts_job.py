"""What a training job of ModelArts is made of: names and places of a run, the body that creates it, a ma-cli file.

Pure functions of the plan. Body: ``POST /v2/{project_id}/training-jobs``, an own image or a preset one with an own
command. ma-cli file: the options of ``ma-cli ma-job submit`` as a flat mapping.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import yaml

from cluster.modelarts_inventory import ModelArts, Volume
from ostrain.plan import LaunchPlan

CODE = "/home/ma-user/modelarts/user-job-dir/code"  # the platform puts code_dir's last folder under user-job-dir
OUTPUT = "/home/ma-user/modelarts/outputs/ostrain"
RESTORE = "/home/ma-user/modelarts/inputs/ostrain"
MOUNT = "/mnt/ostrain"
OUT_CHANNEL, IN_CHANNEL = "ostrain_out", "ostrain_restore"  # variables that the platform sets to the folders
BY_HAND = "by-hand"  # run id of what `ostrain render --ma-cli` writes
# Limits of the service: pairs of `environments`, letters of a value.
MOST_ENVIRONMENTS, LONGEST_ENVIRONMENT = 100, 4096


def section_of(plan: LaunchPlan) -> ModelArts:
    """The inventory's section, out of the plan."""
    return ModelArts.model_validate(plan.service)


@dataclass(frozen=True)
class Places:
    """Keys of a run's objects in the bucket, without slashes at their ends."""

    bucket: str
    root: str
    run_id: str

    @classmethod
    def of(cls, section: ModelArts, run_id: str) -> Places:
        return cls(section.bucket, section.folder, run_id)

    @property
    def run(self) -> str:
        return f"{self.root}/runs/{self.run_id}"

    @property
    def code(self) -> str:
        """What every container gets: the start, the agent, plan files, archives."""
        return f"{self.run}/code"

    @property
    def out(self) -> str:
        """What containers hand over: ``<node>/status.json`` and ``<node>/run/…``, the run directory."""
        return f"{self.run}/out"

    def attempt(self, number: int) -> str:
        """The record of an attempt's job."""
        return f"{self.run}/attempts/{number:06d}.json"

    def archive(self, kind: str, digest: str) -> str:
        """Content that runs share, by its hash."""
        return f"{self.root}/archives/{kind}-{digest}.tar.gz"

    def url(self, key: str) -> str:
        """A folder as the training API writes it: /bucket/folder/."""
        return f"/{self.bucket}/{key}/"


def job_name(run_id: str, attempt: int) -> str:
    """A name that no other attempt has: at most 64 letters, digits, ``_`` and ``-``."""
    readable = re.sub(r"[^A-Za-z0-9_-]", "-", run_id)[:36]
    return f"ostrain-{readable}-{hashlib.sha256(run_id.encode()).hexdigest()[:10]}-{attempt}"


def description(run_id: str, attempt: int) -> str:
    return f"ostrain run {run_id}, attempt {attempt}"[:256]


def environments(plan: LaunchPlan, attempt: int, sealed: dict[str, str]) -> dict[str, str]:
    """Variables of every container. The workers' own travel in env.sh, byte for byte and unseen in the console."""
    section = section_of(plan)
    values = {"OSTRAIN_ATTEMPT": str(attempt), "OSTRAIN_OUTPUT": MOUNT if section.mount else OUTPUT}
    if not section.mount:
        values["OSTRAIN_RESTORE"] = RESTORE
    return {**values, **sealed}


def create_body(plan: LaunchPlan, run_id: str, attempt: int, sealed: dict[str, str]) -> dict[str, Any]:
    """The body of the request. sealed: further environment variables (``cluster.sealed``)."""
    section = section_of(plan)
    places = Places.of(section, run_id)
    algorithm: dict[str, Any] = {
        "code_dir": places.url(places.code),
        "command": f"bash {CODE}/start.sh",
        "engine": _engine(section),
        "environments": environments(plan, attempt, sealed),
    }
    if not section.mount:
        algorithm["inputs"] = [_channel(IN_CHANNEL, RESTORE, places)]
        algorithm["outputs"] = [_channel(OUT_CHANNEL, OUTPUT, places)]
    metadata: dict[str, Any] = {
        "name": job_name(run_id, attempt),
        "workspace_id": section.workspace_id,
        "description": description(run_id, attempt),
    }
    if section.auto_restart:
        metadata["annotations"] = {"fault-tolerance/job-retry-num": str(section.auto_restart)}
    return {
        "kind": "job",
        "metadata": metadata,
        "algorithm": algorithm,
        "spec": _spec(section, places, len(plan.nodes)),
    }


def _engine(section: ModelArts) -> dict[str, str]:
    if section.engine is not None:
        return {"engine_name": section.engine.name, "engine_version": section.engine.version}
    return {"image_url": section.image or ""}


def _channel(name: str, folder: str, places: Places) -> dict[str, Any]:
    return {
        "name": name,
        "local_dir": folder,
        "access_method": "env",
        "remote": {"obs": {"obs_url": places.url(places.out)}},
    }


def _spec(section: ModelArts, places: Places, nodes: int) -> dict[str, Any]:
    resource: dict[str, Any] = {"node_count": nodes}
    for key in ("flavor_id", "pool_id"):
        if getattr(section, key) is not None:
            resource[key] = getattr(section, key)
    spec: dict[str, Any] = {"resource": resource}
    volumes = [_volume(volume) for volume in section.volumes]
    if section.mount:
        volumes.append({"pfs": {"pfs_path": places.url(places.out), "local_path": MOUNT}})
    if volumes:
        spec["volumes"] = volumes
    if section.logs is not None:
        spec["log_export_path"] = {"obs_url": f"/{section.logs[6:]}/"}
    if section.max_hours is not None:
        spec["auto_stop"] = {"time_unit": "HOURS", "duration": section.max_hours}
    if section.priority is not None:
        spec["schedule_policy"] = {"priority": section.priority}
    return spec


def _volume(volume: Volume) -> dict[str, Any]:
    if volume.nfs is not None:
        nfs = {"nfs_server_path": volume.nfs, "local_path": volume.at, "read_only": volume.read_only}
        return {"nfs": nfs}
    if volume.pfs is not None:
        return {"pfs": {"pfs_path": f"/{volume.pfs[6:]}/", "local_path": volume.at}}
    return {"obs": {"obs_path": f"/{(volume.obs or '')[6:]}/", "local_path": volume.at}}


def ma_cli_yaml(plan: LaunchPlan) -> str:
    """The same job for ``ma-cli ma-job submit FILE``; its code folder is written by ``ostrain render --ma-cli``.

    The tool has no options for volumes, running time and restarts: a comment names those that are left out.
    """
    section = section_of(plan)
    run_id = f"{plan.name}-{BY_HAND}"
    places = Places.of(section, run_id)
    options: dict[str, Any] = {
        "name": job_name(run_id, 1),
        "description": description(run_id, 1),
        "code-dir": f"obs:/{places.url(places.code)}",
        "user-command": f"bash {CODE}/start.sh",
        "train-instance-count": len(plan.nodes),
    }
    if section.image is not None:
        options["image-url"] = section.image
    elif section.engine is not None:
        options.update({"framework-type": section.engine.name, "framework-version": section.engine.version})
    if section.flavor_id is not None:
        options["train-instance-type"] = section.flavor_id
    if section.pool_id is not None:
        options["pool-id"] = section.pool_id
    if section.logs is not None:
        options["log-url"] = f"{section.logs}/"
    folder = f"obs:/{places.url(places.out)}"
    options["output"] = [f"{OUT_CHANNEL}={folder}"]
    options["input"] = [f"{IN_CHANNEL}={folder}"]
    # Where the tool puts the channels is told by arguments, --ostrain_out=… and --ostrain_restore=….
    options["env-variables"] = ["OSTRAIN_ATTEMPT=1"]
    left = [key for key in ("volumes", "mount", "max_hours", "auto_restart", "priority") if key in plan.service]
    head = "# ma-cli ma-job submit FILE, after the folder code/ beside it was copied to code-dir.\n"
    if left:
        head += f"# ma-cli has no options for {', '.join(left)}: left out here.\n"
    return head + yaml.safe_dump(options, sort_keys=False, allow_unicode=True, width=1000)
