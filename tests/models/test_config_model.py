"""What the configuration of models and processes accepts, and the shapes it stands for."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from models.config import DataConfig, DiffusionConfig, ModelConfig
from models.config.together import contradictions
from models.cost import count_parameters

SIZED = DataConfig(image_size=(64, 64))


def test_published_sizes_have_names() -> None:
    large = ModelConfig(type="STDiT3-3B/2")  # type: ignore[arg-type]
    assert (large.type, large.hidden_size, large.num_heads, large.depth) == ("STDiT3", 1872, 26, 28)
    assert ModelConfig(type="STDiT3-XL/2") == ModelConfig()  # type: ignore[arg-type]
    assert ModelConfig(type="STDiT3-XL/2", depth=2).depth == 2  # type: ignore[arg-type]
    assert count_parameters(large).total == pytest.approx(3.2e9, rel=0.06)


def test_defaults_are_those_of_the_type_and_survive_a_dump() -> None:
    old, middle = ModelConfig(type="STDiT"), ModelConfig(type="STDiT2")
    assert (old.qk_norm, old.model_max_length) == (False, 120)
    assert (middle.qk_norm, middle.model_max_length) == (True, 200)
    for config in (old, middle, ModelConfig()):
        assert ModelConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"type": "STDiT", "qk_norm": True}, "STDiT knows no qk_norm"),
        ({"type": "STDiT3", "space_scale": 0.5}, "STDiT3 knows no space_scale"),
        ({"type": "STDiT2", "only_train_temporal": True}, "knows no only_train_temporal"),
        ({"type": "STDiT2", "hidden_size": 64, "num_heads": 4}, "multiple of 3"),
        ({"type": "STDiT3", "hidden_size": 60, "num_heads": 4}, "even number"),
        ({"type": "STDiT4"}, "STDiT"),
        ({"type": 3}, "STDiT"),
    ],
)
def test_options_that_a_type_does_not_know(values: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        ModelConfig.model_validate(values)


def test_an_odd_width_of_a_head_suits_the_model_without_rotary_positions() -> None:
    assert ModelConfig(type="STDiT", hidden_size=60, num_heads=4).hidden_size == 60


def test_what_cannot_be_trained_together() -> None:
    old, flow, masks = ModelConfig(type="STDiT"), DiffusionConfig(), {"random": 0.1}
    buckets = DataConfig(bucket_config={"144p": {16: (1.0, 1)}})
    assert contradictions(ModelConfig(), flow, buckets, masks) == []
    assert [place for place, _ in contradictions(old, flow, SIZED, masks)] == [("mask_ratios",)]
    assert [place for place, _ in contradictions(old, flow, buckets, None)] == [("data", "bucket_config")]
    own_sizes = DataConfig(max_image_size=256)
    assert [place for place, _ in contradictions(old, flow, own_sizes, None)] == [("data", "max_image_size")]
    bound = DiffusionConfig(type="iddpm", use_kl=True)
    assert [place for place, _ in contradictions(ModelConfig(), bound, SIZED, masks)] == [("mask_ratios",)]
    no_sigma = ModelConfig(pred_sigma=False)
    assert [place for place, _ in contradictions(no_sigma, bound, SIZED, None)] == [("diffusion", "use_kl")]
    with pytest.raises(ValidationError, match="at least 21"):
        DiffusionConfig(type="iddpm", num_timesteps=20)
