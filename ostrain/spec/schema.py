"""JSON schemas (draft 2020-12) of job and inventory files, made from the models that check them."""

from __future__ import annotations

from typing import Any

from cluster.inventory import Inventory
from models.recipe import recipe_names
from ostrain.spec.descriptions import TRAIN_KEYS
from ostrain.spec.job import JobSpec

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def job_schema() -> dict[str, Any]:
    """The schema of a job file; recipes are offered by name."""
    schema = finished(JobSpec.model_json_schema(mode="validation"), "ostrain job")
    for section, keys in TRAIN_KEYS.items():
        for key, text in keys.items():
            schema["$defs"][section]["properties"][key]["description"] = text
    schema["$defs"]["TrainConfig"]["properties"]["recipe"]["examples"] = recipe_names()
    return schema


def inventory_schema() -> dict[str, Any]:
    """The schema of an inventory file."""
    return finished(Inventory.model_json_schema(mode="validation"), "ostrain inventory")


def finished(schema: dict[str, Any], title: str) -> dict[str, Any]:
    """A model's schema with its draft and title."""
    return {"$schema": _DRAFT, **schema, "title": title}
