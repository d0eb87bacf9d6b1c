"""``ostrain schema``: valid JSON schemas that the bundled files fit and that explain every key."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ostrain.cli.schema import schema
from ostrain.spec.document import load_document, plain
from ostrain.spec.resources import bundled_jobs, job_names

DOCS = Path(__file__).parents[2] / "docs"


@functools.cache
def printed(*options: str) -> dict[str, Any]:
    result = CliRunner().invoke(schema, list(options), standalone_mode=False)
    assert result.exit_code == 0
    return dict(json.loads(result.output))


def fits(value: Any, node: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether a value fits a schema: the part of JSON schema that pydantic writes, no more."""
    if "$ref" in node:
        return fits(value, root["$defs"][node["$ref"].rsplit("/", 1)[1]], root)
    for key in ("anyOf", "oneOf"):
        if key in node and not any(fits(value, option, root) for option in node[key]):
            return False
    if ("enum" in node and value not in node["enum"]) or ("const" in node and value != node["const"]):
        return False
    kinds = node.get("type", [])
    types = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None)}
    if kinds == "boolean" or isinstance(value, bool):
        return isinstance(value, bool) and (kinds in ("boolean", []) or "anyOf" in node)
    if kinds and not any(isinstance(value, types[kind]) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return False
    if isinstance(value, dict):
        known = node.get("properties", {})
        extra = node.get("additionalProperties", True)
        return set(node.get("required", [])) <= set(value) and all(
            fits(item, known[key], root) if key in known else extra is True or (bool(extra) and fits(item, extra, root))
            for key, item in value.items()
        )
    if isinstance(value, list):
        prefix = node.get("prefixItems", [])
        return len(value) >= node.get("minItems", 0) and all(
            fits(item, prefix[i] if i < len(prefix) else node.get("items", {}), root) for i, item in enumerate(value)
        )
    if isinstance(value, int | float):
        return node.get("minimum", value) <= value <= node.get("maximum", value)
    return True


@pytest.mark.parametrize("job", [f"{name}.yaml" for name in job_names()])
def test_bundled_jobs_fit_their_schema(job: str) -> None:
    document = printed()
    value = plain(load_document(bundled_jobs() / job))
    assert fits(value, document, document)
    assert not fits({**value, "nodez": 1}, document, document)
    assert not fits({**value, "nodes": "2"}, document, document)
    assert not fits({**value, "launcher": "ssh"}, document, document)


def test_bundled_inventories_fit_their_schema() -> None:
    document = printed("--inventory")
    for path in (bundled_jobs() / "clusters").glob("*.yaml"):
        value = plain(load_document(path))
        assert fits(value, document, document) and not fits({**value, "nodes": [{"nam": "x"}]}, document, document)


@pytest.mark.parametrize("options", [(), ("--inventory",)])
def test_every_key_of_jobs_and_inventories_is_described(options: tuple[str, ...]) -> None:
    document = printed(*options)
    assert document["$schema"].endswith("2020-12/schema")
    for where, part in [("top", document), *document["$defs"].items()]:
        for key, described in part.get("properties", {}).items():
            assert described.get("description"), f"{where}.{key} has no description"


# A section of a service is explained on a page of its own.
PAGES = [name for name in ("jobs.md", "keys.md", "slurm.md", "modelarts.md") if (DOCS / name).exists()]


def test_the_reference_explains_every_key() -> None:
    text = "".join((DOCS / name).read_text(encoding="utf-8") for name in PAGES)
    for options in ((), ("--inventory",)):
        document = printed(*options)
        for part in [document, *document["$defs"].values()]:
            for key in part.get("properties", {}):
                assert re.search(rf"`{key}`", text), f"none of {PAGES} explains `{key}`"


def test_the_page_of_keys_is_the_one_that_is_printed() -> None:
    result = CliRunner().invoke(schema, ["--markdown"], standalone_mode=False)
    assert (DOCS / "keys.md").read_text(encoding="utf-8") == result.output, "ostrain schema --markdown > docs/keys.md"


def test_recipes_are_offered() -> None:
    assert printed()["$defs"]["TrainVaeConfig"]["properties"]["recipe"]["examples"][0] == "vae/base"
    assert "quickstart" in printed()["$defs"]["TrainConfig"]["properties"]["recipe"]["examples"]
