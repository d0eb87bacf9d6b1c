"""The section ``modelarts:`` of an inventory: a project of Huawei Cloud ModelArts and what its jobs start with.

Formats are those of the training job API v2 (``POST /v2/{project_id}/training-jobs``), see docs/modelarts.md.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from models.units import Duration
from ostrain.environment import SECRET_NAME, Line, Part

_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d{1,2}\Z")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_OBS = re.compile(r"obs://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?!/)([A-Za-z0-9._/-]+?)/?\Z")
_URL = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?/?\Z")
_NFS = re.compile(r"[A-Za-z0-9.:-]+:/[^\s:]*\Z")
# Folders that the platform fills itself; nothing else can be mounted there.
_PLATFORM_FOLDERS = ("/home/ma-user/modelarts", "/cache", "/proc", "/sys", "/dev")


def _shaped(pattern: re.Pattern[str], example: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.match(value):
            raise ValueError(f"{value!r} is not of the form {example}")
        return value

    return AfterValidator(check)


def _obs(value: str) -> str:
    if not _OBS.match(value) or any(part in ("", ".", "..") for part in value[6:].rstrip("/").split("/")):
        raise ValueError(f"{value!r} is not of the form obs://bucket/folder")
    return value.rstrip("/")


def _mount_point(value: str) -> str:
    if not value.startswith("/") or value == "/" or ".." in value.split("/"):
        raise ValueError(f"{value!r} has to be an absolute path in the container")
    taken = next((folder for folder in _PLATFORM_FOLDERS if f"{value}/".startswith(f"{folder}/")), None)
    if taken:
        raise ValueError(f"{taken} belongs to the platform; mount somewhere else, for example at /mnt/data")
    return value


Region = Annotated[Line, _shaped(_REGION, "cn-southwest-2")]
Id = Annotated[Line, _shaped(_ID, "letters, digits, . _ -")]
Url = Annotated[Line, _shaped(_URL, "https://modelarts.example.com")]
ObsFolder = Annotated[Line, AfterValidator(_obs)]
MountPoint = Annotated[Line, AfterValidator(_mount_point)]
SecretName = Annotated[Line, _shaped(SECRET_NAME, "letters, digits, _ . -")]


class Engine(Part):
    """A preset image of ModelArts."""

    name: Id = Field(description="engine name, as `ma-cli ma-job get-engine` lists it")
    version: Id = Field(description="engine version, from the same list")


class Volume(Part):
    """A file system mounted in every container."""

    at: MountPoint = Field(description="where in the container")
    nfs: Annotated[Line, _shaped(_NFS, "192.0.2.5:/share")] | None = Field(
        None, description="SFS Turbo: address:/path; dedicated pools only"
    )
    pfs: ObsFolder | None = Field(None, description="folder of a parallel file system, obs://bucket/folder")
    obs: ObsFolder | None = Field(None, description="folder of an object bucket, obs://bucket/folder")
    read_only: bool = Field(False, description="for nfs: mounted for reading only")

    @model_validator(mode="after")
    def _one_source(self) -> Volume:
        if sum(source is not None for source in (self.nfs, self.pfs, self.obs)) != 1:
            raise ValueError("a volume has exactly one of nfs, pfs and obs")
        if self.read_only and self.nfs is None:
            raise ValueError("read_only is for nfs; the others follow the rights of the account's agency")
        return self


class Keys(Part):
    """Names of the secrets that sign requests; never their values."""

    access_key: SecretName = Field("modelarts_access_key", description="secret that holds the access key")
    secret_key: SecretName = Field("modelarts_secret_key", description="secret that holds the secret key")
    security_token: SecretName | None = Field(None, description="secret that holds the token of temporary keys")


class ModelArts(Part):
    """A project and pool of ModelArts, and what containers are made of."""

    region: Region = Field(description="region, for example cn-southwest-2")
    project_id: Id = Field(description="project id of that region (console: My Credentials)")
    workspace_id: Id = Field("0", description="workspace of the jobs")
    pool_id: Id | None = Field(None, description="dedicated pool; without it jobs run in the public pool")
    flavor_id: Id | None = Field(None, description="specification of a node; not for dedicated pools of CPUs")
    image: Annotated[Line, _shaped(_IMAGE, "organization/name:tag")] | None = Field(
        None, description="own image in SWR, organization/name:tag"
    )
    engine: Engine | None = Field(None, description="preset image, instead of an own one")
    obs: ObsFolder = Field(description="folder of everything ostrain keeps, obs://bucket/folder")
    mount: bool = Field(False, description="obs is a parallel file system: mount it instead of having files copied")
    logs: ObsFolder | None = Field(None, description="where the platform keeps its logs, Ascend's among them")
    volumes: list[Volume] = Field(default_factory=list, description="file systems for data and weights")
    keys: Keys = Field(default_factory=Keys, description="names of the secrets that sign requests")
    max_hours: Annotated[int, Field(ge=1, le=8760)] | None = Field(None, description="the platform ends a job after it")
    auto_restart: Annotated[int, Field(ge=0, le=128)] = Field(
        0, description="restarts of a failed job by the platform, on other nodes where one is at fault"
    )
    priority: Literal[1, 2, 3] | None = Field(None, description="priority in a dedicated pool, 3 is highest")
    sync: Duration = Field(10.0, description="how often a container hands over logs, metrics and checkpoints")
    wait: Duration = Field(1800.0, description="how long a container waits for the others to come up")
    endpoint: Url | None = Field(None, description="ModelArts's address; default: that of the region")
    obs_endpoint: Url | None = Field(None, description="OBS's address; default: that of the region")

    @model_validator(mode="after")
    def _complete(self) -> ModelArts:
        if (self.image is None) == (self.engine is None):
            raise ValueError("say either image (your own) or engine (a preset one)")
        if self.pool_id is None and self.flavor_id is None:
            raise ValueError("say flavor_id (public pool), or pool_id (dedicated pool), or both")
        if self.priority is not None and self.pool_id is None:
            raise ValueError("only jobs in a dedicated pool (pool_id) have a priority")
        if any(volume.nfs for volume in self.volumes) and self.pool_id is None:
            raise ValueError("nfs volumes need a dedicated pool (pool_id)")
        places = [volume.at for volume in self.volumes]
        twice = sorted({place for place in places if places.count(place) > 1})
        if twice:
            raise ValueError(f"two volumes at {twice[0]}")
        if not 1.0 <= self.sync <= 600.0:
            raise ValueError("sync has to lie between 1s and 10m")
        return self

    @property
    def service_url(self) -> str:
        return (self.endpoint or f"https://modelarts.{self.region}.myhuaweicloud.com").rstrip("/")

    @property
    def obs_url(self) -> str:
        return (self.obs_endpoint or f"https://obs.{self.region}.myhuaweicloud.com").rstrip("/")

    @property
    def bucket(self) -> str:
        return self.obs[6:].split("/", 1)[0]

    @property
    def folder(self) -> str:
        """The folder in the bucket, without slashes around it."""
        return self.obs[6:].split("/", 1)[1]
