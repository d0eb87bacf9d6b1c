"""What ``python -m models.embed_text`` is told."""

from __future__ import annotations

from models.config.base import Positive
from models.config.running import TaskConfig
from models.config.text import TextConfig


class EmbedTextConfig(TaskConfig):
    """Captions become npz files, ``text_emb`` float32 [L, C] and ``mask`` uint8 [L].

    annotations: CSV of clips, embedded to ``<out>/<video path without suffix>.npz``; or prompts: a text file with one
    prompt a line, embedded to ``<out>/<number>-<first words>.npz``, with ``tokens`` and a leading axis of 1.
    batch_size: captions that a worker embeds at once. overwrite: also what is there already; else it is kept where it
    is whole and of the right shape.
    """

    text: TextConfig = TextConfig()
    annotations: str = ""
    prompts: str = ""
    out: str = ""
    video_column: str = "video"
    caption_column: str = "caption"
    batch_size: Positive = 8
    overwrite: bool = False
