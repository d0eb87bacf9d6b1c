"""JSON schemas (draft 2020-12) of job and inventory files, made from the models that check them."""

from __future__ import annotations

from typing import Any

from cluster.inventory import Inventory
from models.config.tasks import TASKS
from models.recipe import recipe_names, recipe_task
from ostrain.spec.descriptions import TRAIN_KEYS
from ostrain.spec.job import JobSpec
from ostrain.spec.task_descriptions import COMMON, TASK_KEYS

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def job_schema() -> dict[str, Any]:
    """The schema of a job file; recipes are offered by name."""
    schema = finished(JobSpec.model_json_schema(mode="validation"), "ostrain job")
    for section, definition in schema["$defs"].items():
        for key, described in definition.get("properties", {}).items():
            if text := described_key(section, key):
                described["description"] = text
    for kind in TASKS.values():
        names = [name for name in recipe_names() if recipe_task(name) == kind.name]
        schema["$defs"][kind.config.__name__]["properties"]["recipe"]["examples"] = names
    return schema


def described_key(section: str, key: str) -> str:
    """What a key of a section means; empty where nobody said so."""
    for keys in (TRAIN_KEYS.get(section), TASK_KEYS.get(section)):
        if keys and key in keys:
            return keys[key]
    if section == "ClipsConfig":
        return TRAIN_KEYS["DataConfig"].get(key, "")
    return COMMON.get(key, "") if section in TASK_KEYS else ""


def inventory_schema() -> dict[str, Any]:
    """The schema of an inventory file."""
    return finished(Inventory.model_json_schema(mode="validation"), "ostrain inventory")


def finished(schema: dict[str, Any], title: str) -> dict[str, Any]:
    """A model's schema with its draft and title."""
    return {"$schema": _DRAFT, **schema, "title": title}
