"""A training on cached latents and captions embedded as it goes is the training on pixels and embeddings in files."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.config import TrainConfig, unrunnable
from models.config.cache_latents import CacheLatentsConfig
from models.data.encoding import encode_all
from tests.models.runs import events, losses, make_run, output, train
from tests.models.tasks import make_task

pytestmark = pytest.mark.train


def test_latents_and_online_text_change_no_loss(tmp_path: Path) -> None:
    files = make_run(tmp_path / "files", steps=3)
    assert train(files) == 0, output(files)
    data = {"text_embeddings": "", "videos": "", "latents": "latents", "image_size": None}
    text = {"type": "hashed", "max_length": 4, "channels": 8}
    own = make_run(tmp_path / "own", steps=3, data=data, text=text)
    caching = {
        "annotations": "clips/train.csv", "videos": "clips", "out": "latents", "image_sizes": [[16, 24]],
        "autoencoder": {"type": "identity"},
    }  # fmt: skip
    encode_all(CacheLatentsConfig.model_validate(caching), make_task(own)[0])
    assert train(own) == 0, output(own)
    assert len(losses(files)) == 3
    assert losses(own) == losses(files)
    assert events(own, "train_started")[0]["clips"] == events(files, "train_started")[0]["clips"]


def _problems(**over: object) -> list[str]:
    values: dict = {"model": {"caption_channels": 8, "model_max_length": 4}, "data": {"latents": "l"}, **over}
    return [".".join(place) for place, _ in unrunnable(TrainConfig.model_validate(values))]


def test_what_does_not_go_together() -> None:
    assert _problems() == []
    hashed = {"type": "hashed", "max_length": 4, "channels": 8}
    assert _problems(text=hashed) == []
    assert _problems(text={"max_length": 4}) == ["text.pretrained"]
    assert _problems(text={**hashed, "max_length": 5, "channels": 9}) == ["text.max_length", "text.channels"]
    assert _problems(text={**hashed, "channels": 9}, data={"latents": "l", "text_embeddings": "t"}) == []
    assert _problems(data={"latents": "l", "frame_interval": 2}) == ["data.frame_interval"]
    assert _problems(data={"latents": "l", "max_image_size": 64}) == ["data.max_image_size"]
    identity = {"type": "identity"}
    fit = {"max_image_size": 64, "bucket_config": {"144p": {4: [1.0, 1]}}}
    assert _problems(autoencoder=identity, data=fit) == ["data.max_image_size"]
    fixed = {"type": "STDiT", "caption_channels": 8, "model_max_length": 4}
    assert _problems(model=fixed) == ["data.image_size"]
