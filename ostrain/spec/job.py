"""The job file as pydantic models. Field names are the file's keys; docs/jobs.md is the reference for people."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from cluster.inventory import NodePath, Python
from models.config import LayoutConfig, TaskConfig, TrainConfig
from models.config.cache_latents import CacheLatentsConfig
from models.config.embed_text import EmbedTextConfig
from models.config.eval_vae import EvalVaeConfig
from models.config.sample import SampleConfig
from models.config.tasks import TASKS
from models.config.train_vae import TrainVaeConfig
from models.units import Duration
from ostrain.environment import Env, Line, Part
from ostrain.spec.check_config import CheckConfig

_JOB_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\Z")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}\Z")


def _job_name(value: str) -> str:
    if not _JOB_NAME.match(value):
        raise ValueError("letters, digits, . _ - make a job's name (at most 63, the first and last no sign)")
    return value


def _file_name(value: str) -> str:
    if not _FILE_NAME.match(value):
        raise ValueError("letters, digits, . _ - make a name under files/ (at most 100, the first no sign)")
    return value


Nodes = Annotated[int, Field(ge=1, le=4096)]
DevicesPerNode = Annotated[int, Field(ge=1, le=1024)]
MasterPort = Literal["auto"] | Annotated[int, Field(ge=1024, le=65535)]


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return value


class LogPolicyConfig(Part):
    """What a line in the logs of a failed attempt says about starting again."""

    pattern: Annotated[Line, AfterValidator(_pattern)] = Field(description="regular expression looked for in a line")
    action: Literal["exclude_node", "stop"] = Field(description="exclude_node: the one with that line; stop: give up")
    message: Line = Field("", description="what people are told then")


def _unquoted_off(value: Any) -> Any:
    """YAML reads ``off`` without quotes as a boolean."""
    return "off" if value is False else value


class RestartConfig(Part):
    """When a run is started again by itself. docs/recovery.md has the whole story."""

    max: Annotated[int, Field(ge=0, le=1000)] = Field(
        0, description="how many times in a row a failed run is started again; 0: nobody supervises it"
    )
    backoff: Duration = Field(5.0, description="wait before a restart; doubled at each further one in a row")
    backoff_max: Duration = Field(300.0, description="the longest wait before a restart")
    reset_after: Duration = Field(
        3600.0, description="an attempt that trained for this long makes the counts start anew"
    )
    spares: Annotated[int, Field(ge=0, le=4096)] = Field(
        0, description="nodes of the inventory beyond `nodes` that are kept ready to take a failed node's place"
    )
    shrink: bool = Field(True, description="go on with fewer nodes when no spare is left, the global batch kept")
    min_nodes: Annotated[int, Field(ge=1)] = Field(1, description="the fewest nodes to shrink to")
    hang_timeout: Duration | None = Field(
        None, description="a run without progress for this long counts as hung; default: 30m where it is supervised"
    )
    node_timeout: Duration = Field(
        60.0, description="a node that does not answer for this long while the run stands still counts as lost"
    )
    start_timeout: Duration = Field(
        1800.0, description="the longest that starting, loading, compiling or saving may take without a step"
    )
    log_policies: list[LogPolicyConfig] = Field(
        default_factory=list, description="lines in the logs that decide, before the preset ones for Ascend"
    )


class JobSpec(Part):
    """A job: where it runs, and exactly one task of the payload (``ostrain.spec.load`` sees to that)."""

    name: Annotated[Line, AfterValidator(_job_name)] = Field(description="the job's name; run ids start with it")
    cluster: Line = Field("local", description="an inventory's name or path; `local` is this machine")
    nodes: Nodes = Field(1, description="number of nodes")
    devices_per_node: DevicesPerNode = Field(description="devices (workers) on every node")
    launcher: Literal["msrun", "mpirun", "rank_table"] = Field("msrun", description="what starts the workers")
    bind_cores: Annotated[Literal["auto", "off"], BeforeValidator(_unquoted_off)] = Field(
        "auto", description="auto: each worker on the cores near its NPU; off: on any core, as CPU workers always are"
    )
    rank_table: Line | None = Field(
        None, description="HCCL rank table for launcher rank_table, a file beside the job; default: made from facts"
    )
    master_port: MasterPort = Field("auto", description="the scheduler's port; auto picks a free one at each start")
    layout: LayoutConfig = Field(default_factory=LayoutConfig, description="degrees of parallelism; dp = world / sp")
    train: TrainConfig | None = Field(None, description="what is trained; a recipe and the keys that override it")
    train_vae: TrainVaeConfig | None = Field(None, description="an autoencoder that is trained")
    sample: SampleConfig | None = Field(None, description="videos and images that are made from prompts")
    embed_text: EmbedTextConfig | None = Field(None, description="captions that are embedded")
    cache_latents: CacheLatentsConfig | None = Field(None, description="clips that are encoded")
    eval_vae: EvalVaeConfig | None = Field(None, description="an autoencoder that is measured")
    files: dict[Annotated[str, AfterValidator(_file_name)], Line] = Field(
        default_factory=dict, description="name -> path beside the job file; pushed to the nodes as files/<name>"
    )
    env: Env = Field(default_factory=dict, description="environment of the workers")
    python: Python | None = Field(None, description="Python on the nodes; overrides the inventory's")
    setup: list[NodePath] = Field(
        default_factory=list, description="scripts to source on the nodes, after the inventory's"
    )
    restart: RestartConfig = Field(default_factory=RestartConfig, description="automatic restarts")
    check: CheckConfig = Field(default_factory=CheckConfig, description="what is looked at on the nodes before a start")

    @property
    def task(self) -> str:
        """Name of the job's task: the key that holds its configuration."""
        return next(name for name in TASKS if getattr(self, name) is not None)

    @property
    def config(self) -> TaskConfig:
        """The task's configuration."""
        config: TaskConfig = getattr(self, self.task)
        return config
