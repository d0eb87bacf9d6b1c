"""The training loop of autoencoders: that of :mod:`models.trainer`, with other samples and another step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from models.checkpoint import state
from models.config.train_vae import TrainVaeConfig
from models.data.bucket import Shape
from models.data.catalogue import Catalogue, build_catalogue
from models.data.clip_batch import ClipBuilder, MixedOrder
from models.data.order import FixedOrder, Order
from models.events import Log, Reporter
from models.parallel.world import World
from models.settings import unfit
from models.trainer import Trainer
from models.vae.critic import PREFIX
from models.vae.loading import fill, load, read_weights, whole_names
from models.vae.perceptual import build_perceptual
from models.vae_step import VaeStep
from models.weights import load_state_dict


class VaeTrainer(Trainer):
    """One rank of a run, from its configuration to its last checkpoint."""

    config: Any  # a TrainVaeConfig
    train: Any  # a VaeStep

    def __init__(self, config: TrainVaeConfig, run_dir: Path, world: World, report: Reporter, log: Log) -> None:
        super().__init__(cast(Any, config), run_dir, world, report, log)

    def _make_step(self, shape: Shape | None) -> Any:
        config: TrainVaeConfig = self.config
        wanted = config.use_real_rec_loss and config.perceptual_loss_weight > 0
        distance = build_perceptual(config.perceptual, self.run_dir, config.seed) if wanted else None
        return VaeStep(config, self.mesh, distance)

    def _make_order(self, catalogue: Catalogue, shape: Shape | None) -> Order:
        assert shape is not None
        config: TrainVaeConfig = self.config
        batch = config.batch_size * self.mesh.dp * config.gradient_accumulation_steps
        return MixedOrder(FixedOrder(config.seed, len(catalogue.clips), shape, batch), config)

    def _make_catalogue(self, shape: Shape | None) -> Catalogue:
        assert shape is not None
        data = self.config.data
        # Single pictures do where steps see single frames alone.
        needed = Shape(1, shape.height, shape.width) if self.config.mixed_strategy == "image_only" else shape
        return build_catalogue(data, self.run_dir, self.world, None, unfit(data, needed))

    def _make_validation(self) -> None:
        """Nothing on the way: ``ostrain eval vae`` measures checkpoints."""

    def _make_builder(self, catalogue: Catalogue) -> ClipBuilder:
        return ClipBuilder(self.config, catalogue.clips)

    def _start(self) -> None:
        """The files the autoencoder names, then ``init_from`` over them; all from rank 0."""
        config: TrainVaeConfig = self.config
        named = [name for name in (config.autoencoder.pretrained, config.autoencoder.pretrained_2d) if name]
        if self.world.rank == 0:
            load(self.train.model, config.autoencoder, self.run_dir)
        if named:
            self.log.info(f"weights from {', '.join(named)}")
        super()._start()
        if self.train.critic is not None:
            state.spread(self.train.critic)

    def _initialize_from(self, path: Path) -> None:
        if self.world.rank == 0:
            weights = read_weights(path, discriminator=True)
            own = {name: value for name, value in weights.items() if not name.startswith(PREFIX)}
            fill(self.train.model, whole_names(own, self.train.model), path)
            critic = self.train.critic
            of_critic = {name[len(PREFIX) :]: weights[name] for name in weights if name.startswith(PREFIX)}
            if critic is not None and of_critic:
                load_state_dict(critic.model, of_critic)
                self.log.info(f"the discriminator goes on with that of {path}")
        state.spread(self.train)

    def _about_model(self, parameters: int) -> str:
        learning = sum(param.size for param in self.train.weights.params.values())
        config: TrainVaeConfig = self.config
        losses = [name for name in ("use_real_rec_loss", "use_z_rec_loss", "use_image_identity_loss")
                  if getattr(config, name)]  # fmt: skip
        text = f"autoencoder {config.autoencoder.type}: {parameters:,} parameters, {learning:,} learn; "
        text += f"{', '.join(losses)}; mix {config.mixed_strategy or 'none'}"
        if config.adversarial is not None:
            size = sum(param.size for param in self.train.critic.weights.params.values())
            text += f"; {config.adversarial.discriminator} with {size:,} from step {config.adversarial.start}"
        return text
