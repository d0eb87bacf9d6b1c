"""Recipes and ``train.yaml``: inheritance, and every problem named."""

from __future__ import annotations

from pathlib import Path

import pytest

from models import recipe
from models.config import DataConfig
from models.config.tasks import TASKS
from models.data.bucket import Shape
from models.data.decode import Header
from models.exits import BAD_CONFIG, PayloadError
from models.recipe import RecipeError, expand, merge, recipe_chain, recipe_names, recipe_task, resolve
from models.settings import fixed_shape, read_config, unfit


def test_every_bundled_recipe_is_a_valid_configuration() -> None:
    names = recipe_names()
    assert {"quickstart", "opensora_v1_2/stage1", "opensora_v1_2/stage2", "opensora_v1_2/stage3"} <= set(names)
    for name in names:
        kind = TASKS[recipe_task(name)]
        assert kind.config.model_validate(expand({"recipe": name}, kind.name)).recipe == name
    with pytest.raises(RecipeError, match="recipe vae/stage1 is one for train_vae, not for train"):
        resolve({"recipe": "vae/stage1"})


def test_stage3_is_the_published_one() -> None:
    config = resolve({"recipe": "opensora_v1_2/stage3", "steps": 7})
    assert [path.stem for path in recipe_chain("opensora_v1_2/stage3")] == ["base", "stage3"]
    assert (config.steps, config.optimizer.eps, config.optimizer.warmup_steps, config.ema_decay) == (
        7,
        1e-15,
        1000,
        0.9999,
    )
    assert config.max_device_memory == 59 << 30
    assert config.model.freeze_y_embedder and config.model.caption_channels == 4096
    assert config.data.bucket_config is not None
    assert config.data.bucket_config["480p"][204] == ((0.5, 0.5), 1)
    assert config.mask_ratios is not None and config.mask_ratios["image_head"] == 0.22


def test_merging_goes_key_by_key_and_replaces_lists() -> None:
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 3}
    assert merge(base, {"a": {"y": [9]}, "b": {"c": 1}}) == {"a": {"x": 1, "y": [9]}, "b": {"c": 1}}
    assert base == {"a": {"x": 1, "y": [1, 2]}, "b": 3}


def test_buckets_and_masks_are_replaced_whole() -> None:
    """As the control plane does it: a run by hand trains on what a job of the same recipe trains on."""
    config = resolve({"recipe": "opensora_v1_2/max_seq_verify", "mask_ratios": {"image_head": 0.1}})
    assert config.data.bucket_config is not None and set(config.data.bucket_config) == {
        "240p", "360p", "480p", "720p", "1024"
    }  # fmt: skip
    assert config.mask_ratios == {"image_head": 0.1}


def test_unknown_recipe_lists_close_names() -> None:
    with pytest.raises(
        RecipeError, match=r"no recipe named 'opensora_v1_2/stage_3'; did you mean opensora_v1_2/stage3"
    ):
        recipe_chain("opensora_v1_2/stage_3")
    with pytest.raises(RecipeError, match=r"there is no recipe named '\.\./x'"):
        recipe_chain("../x")


def test_circles_and_missing_bases_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "FOLDER", tmp_path)
    (tmp_path / "a.yaml").write_text("base: b\n")
    (tmp_path / "b.yaml").write_text("base: a\n")
    (tmp_path / "c.yaml").write_text("base: gone\n")
    (tmp_path / "d.yaml").write_text("- 1\n")
    with pytest.raises(RecipeError, match="in a circle: a -> b -> a"):
        recipe_chain("a")
    with pytest.raises(RecipeError, match="recipe c builds on 'gone', which does not exist"):
        recipe_chain("c")
    with pytest.raises(RecipeError, match="a recipe is a mapping"):
        recipe_chain("d")


def read(tmp_path: Path, text: str) -> PayloadError:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(PayloadError) as caught:
        read_config(path)
    assert caught.value.exit_code == BAD_CONFIG and caught.value.where == str(path)
    return caught.value


def test_all_problems_of_a_configuration_are_named(tmp_path: Path) -> None:
    error = read(tmp_path, "recipe: quickstart\nstepps: 3\noptimizer: {lr: -1}\n")
    assert error.what == "2 problems in the configuration"
    assert "stepps:" in error.why and "optimizer.lr:" in error.why
    assert "is not valid YAML" in read(tmp_path, "a: [").what
    assert "not a mapping" in read(tmp_path, "- 1").what
    assert "did you mean quickstart" in read(tmp_path, "recipe: quikstart").why
    error = read(tmp_path, "recipe: quickstart\nlayout: {sp: 3}\njit: on\nmodel: {in_channels: 4}\n")
    assert "layout.sp: ulysses shares 4 heads among 3 ranks; 1, 2, 4 would work, or dsp" in error.why
    assert "jit: ranks talk inside the model under sp 3" in error.why
    assert "model.in_channels: is 4, the autoencoder gives 3" in error.why
    with pytest.raises(PayloadError, match="does not exist"):
        read_config(tmp_path / "none.yaml")


def test_sizes_come_from_one_place() -> None:
    buckets = {"240p": {51: [1.0, 1]}}
    assert fixed_shape(DataConfig(resolution="240p", aspect_ratio="9:16", num_frames=51)) == Shape(51, 240, 426)
    assert fixed_shape(DataConfig.model_validate({"image_size": [8, 9], "bucket_config": buckets})) == Shape(16, 8, 9)
    only_buckets = DataConfig.model_validate({"bucket_config": buckets})
    assert fixed_shape(only_buckets) is None
    assert unfit(only_buckets, None)(Header(52, 240, 426, 24.0)) == ""
    assert "fits no bucket" in unfit(only_buckets, None)(Header(51, 240, 426, 24.0))
    with pytest.raises(PayloadError, match="nothing says how large"):
        fixed_shape(DataConfig())
    with pytest.raises(PayloadError, match="unknown resolution '241p'"):
        fixed_shape(DataConfig(resolution="241p", aspect_ratio="9:16"))
