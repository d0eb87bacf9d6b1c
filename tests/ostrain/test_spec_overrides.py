"""``--set``: paths, values, places."""

from __future__ import annotations

from pathlib import Path

import pytest

from ostrain.spec import load_job
from tests.ostrain.spec_helpers import TRAIN, problems, the_problem, write_job


def test_values_are_yaml_and_the_last_one_wins(tmp_path: Path) -> None:
    path = write_job(tmp_path)
    loaded = load_job(
        path,
        ["train.steps=3", "train.steps=5", "env.A='1=2'", "env.B=x=y", "train.data.image_size=[8, 16]",
         "train.data.image_size.1=24", "train.optimizer={lr: 1e-3}", "layout.zero=1", "train.ema_decay=null"],
    )  # fmt: skip
    job = loaded.job
    assert (job.train.steps, job.env, job.train.data.image_size) == (5, {"A": "1=2", "B": "x=y"}, (8, 24))
    assert (job.train.optimizer.lr, job.train.layout.zero, job.train.ema_decay) == (1e-3, 1, None)


def test_overrides_reach_into_the_recipe(tmp_path: Path) -> None:
    train = TRAIN.replace("quickstart", "opensora_v1_2/stage3")
    loaded = load_job(write_job(tmp_path, train=train), [
        "train.max_device_memory=null", "train.data.bucket_config.144p.51.1=3",
    ])  # fmt: skip
    buckets = loaded.job.train.data.bucket_config
    assert buckets is not None and buckets["144p"][51] == (1.0, 3) and len(buckets) == 10


def test_the_recipe_itself_can_be_overridden(tmp_path: Path) -> None:
    path = write_job(tmp_path, train=TRAIN.replace("quickstart", "nonsense"))
    assert load_job(path, ["train.recipe=quickstart"]).job.train.model.hidden_size == 96


@pytest.mark.parametrize(
    ("override", "words", "underlined"),
    [
        ("train.steps=x", "steps needs a whole number, not 'x'", "x"),
        ("train.stepz=3", "unknown key 'stepz'; did you mean 'steps'?", "stepz"),
        ("trian.steps=3", "unknown key 'trian'; did you mean 'train'?", "trian"),
        ("nodes.0.host=a", "nodes is a single value (1); it has no '0'", "0"),
        ("train.data.image_size.5=1", "is a list of 2; items count from 0", "5"),
        ("train.steps", "needs the form key.key=value", "train.steps"),
        ("train..steps=3", "an empty key", ""),
        ("train.steps=[1", "not YAML", ""),
        ("env.A=", "A needs text, not nothing", ""),
        ("train.optimizer.lr=nope", "lr needs a number", "nope"),
        ("layout.sp=7", "sp 7 does not divide", "7"),
    ],
)
def test_mistakes_point_into_the_override(tmp_path: Path, override: str, words: str, underlined: str) -> None:
    problem = the_problem(write_job(tmp_path, "nodes: 1\n"), override)
    head, line, carets = problem.split("\n")
    assert head.startswith(f"--set {override}: ") and words in head
    start = carets.index("^")
    assert line.strip() == override
    if underlined:
        assert line[start : start + carets.count("^")] == underlined


def test_every_wrong_override_is_told(tmp_path: Path) -> None:
    assert len(problems(write_job(tmp_path), "a", "train.steps=x", "bogus=1")) == 3


def test_an_override_does_not_count_as_said_twice(tmp_path: Path) -> None:
    path = write_job(tmp_path, "layout: {sp: 2}\n")
    assert load_job(path, ["layout.sp=1"]).job.train.layout.sp == 1
    assert "say it once" in the_problem(path, "train.layout.sp=1")
