"""Every bundled job renders, and the payload accepts what it renders to; so does every recipe by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from models.config.tasks import TASKS
from models.recipe import expand, recipe_names, recipe_task
from ostrain.compiler import compile_plan
from ostrain.spec.load import load_job
from ostrain.spec.resources import job_names


@pytest.mark.parametrize("name", job_names())
def test_a_bundled_job_renders_and_the_payload_reads_it(name: str) -> None:
    loaded = load_job(Path(name))
    plan = compile_plan(loaded)
    assert plan.task == loaded.job.task
    for node in plan.nodes:
        text = next(file.text for file in node.files if file.path == f"{plan.task}.yaml")
        assert TASKS[plan.task].config.model_validate(yaml.safe_load(text)) == loaded.job.config.model_copy(
            update={"recipe": ""}
        )
        launch = next(file.text for file in node.files if file.path == "launch.sh")
        assert f"-m models.{plan.task} --config {plan.task}.yaml" in launch


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_a_whole_configuration(name: str) -> None:
    task = recipe_task(name)
    assert TASKS[task].config.model_validate(expand({"recipe": name}, task)).recipe == name
