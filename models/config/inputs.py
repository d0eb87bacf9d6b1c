"""What data, text encoder, autoencoder and model of a training say against one another."""

from __future__ import annotations

from models.config.autoencoder import AutoencoderConfig
from models.config.data import DataConfig
from models.config.model import ModelConfig
from models.config.text import TextConfig
from models.config.together import Problem


def text_problems(text: TextConfig | None, data: DataConfig, model: ModelConfig) -> list[Problem]:
    """(path below the task, why) of what keeps captions from being embedded during training."""
    if text is None or data.text_embeddings:
        return []
    found: list[Problem] = []
    if not text.has_weights:
        found.append((("text", "pretrained"), "names no folder, from which T5 is read; give it, or set type to hashed"))
    if text.max_length != model.model_max_length:
        why = f"captions get {text.max_length} tokens, the model takes {model.model_max_length}; set both alike"
        found.append((("text", "max_length"), why))
    if text.type == "hashed" and text.channels != model.caption_channels:
        why = f"is {text.channels}, model.caption_channels is {model.caption_channels}; set both alike"
        found.append((("text", "channels"), why))
    return found


def latent_problems(data: DataConfig, autoencoder: AutoencoderConfig, model: ModelConfig) -> list[Problem]:
    """(path below the task, why) of what does not go with cached latents or with sizes that clips choose."""
    found: list[Problem] = []
    sized = data.image_size is not None or data.resolution is not None
    if data.max_image_size is not None and (sized or data.bucket_config is not None or data.latents):
        why = "clips choose their size; leave out image_size, resolution, bucket_config and latents"
        found.append((("data", "max_image_size"), why))
    if data.latents and data.frame_interval > 1 and autoencoder.patch_size[0] > 1:
        why = f"latents of {autoencoder.type} hold frames that were chosen when they were cached (frame_stride); set 1"
        found.append((("data", "frame_interval"), why))
    if model.type == "STDiT" and not sized and (data.latents or data.max_image_size is not None):
        found.append((("data", "image_size"), "STDiT is made for samples of one size; set it"))
    return found
