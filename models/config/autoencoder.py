"""How pixels become latents."""

from __future__ import annotations

from typing import Literal

from models.config.base import Dtype, Positive, Section


class AutoencoderConfig(Section):
    """How pixels become latents. ``identity``: latents are the pixels in [-1, 1] (in_channels 3)."""

    type: Literal["identity", "OpenSoraVAE_V1_2"] = "OpenSoraVAE_V1_2"
    pretrained: str | None = None
    micro_batch_size: Positive | None = 4
    micro_frame_size: Positive | None = 17
    dtype: Dtype = "bf16"

    @property
    def latent_channels(self) -> int:
        return 3 if self.type == "identity" else 4
