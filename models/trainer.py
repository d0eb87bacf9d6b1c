"""The training loop: data, steps, checkpoints, reports. Every rank runs it; only its samples differ by rank."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from models.checkpoint import state
from models.checkpoint.find import Found, find
from models.checkpoint.restore import restore
from models.checkpoint.saver import Saved, Saver
from models.config import CheckpointConfig, TrainConfig
from models.data.batch import Failure, SampleBuilder
from models.data.bucket import Shape
from models.data.catalogue import Catalogue, build_catalogue
from models.data.choosing import check_latents, common_shape, make_order, unfit_rule
from models.data.loader import Builder, Loader, StepData
from models.data.order import Order
from models.events import Log, Reporter
from models.exits import BAD_DATA, NOT_FINITE, PayloadError
from models.length import Length
from models.metrics import MetricsFile, StepMetrics, TensorBoard, peak_memory
from models.optim import learning_rate
from models.parallel.mesh import Mesh
from models.parallel.world import World, host_threads
from models.settings import fixed_shape
from models.step import StepResult, TrainStep
from models.text import build as build_text_encoder
from models.text.online import OnlineText, Texts
from models.validation import Validation

# Steps in a row that may be dropped before the run ends.
MAX_DROPPED = 10
# Every how many steps the collectives are timed. On Ascend timing them keeps the device from running ahead.
TIMED_EVERY = {"CPU": 1, "Ascend": 10}
_NAMED = 20


class Trainer:
    """One rank of a run, from its configuration to its last checkpoint."""

    def __init__(self, config: TrainConfig, run_dir: Path, world: World, report: Reporter, log: Log) -> None:
        self.config, self.run_dir, self.world, self.report, self.log = config, run_dir, world, report, log
        self.mesh = Mesh(world, config.layout)
        self.folder = run_dir / config.checkpoint.dir
        # Steps done; samples and steps dropped since the run began, over all ranks; dropped steps in a row.
        self.step, self.skipped, self.dropped, self.dropped_in_a_row = 0, 0, 0, 0
        self._named: set[Path] = set()

    def run(self) -> None:
        """Trains up to ``steps``. PayloadError for what the user can mend; anything else is a fault of the worker."""
        self.report.heartbeat(0, "loading")
        shape = fixed_shape(self.config.data)
        catalogue = self._catalogue(shape)
        shape = shape or common_shape(self.config, catalogue.clips)
        self.train = self._make_step(shape)
        self.order = self._make_order(catalogue, shape)
        self.length = Length(self.config, self.order)
        self._banner(catalogue, shape)
        self.digest = catalogue.digest
        self._restore_or_initialize()
        self._validation = self._make_validation()
        self.saver = Saver(self.folder, self.world, self.report.node, self.config.checkpoint)
        if self.world.rank == 0:
            self.report.event("train_started", step=self.step, steps=self.length.total, clips=len(catalogue.clips))
        loader = self._loader(catalogue)
        try:
            self._steps(loader)
        finally:
            loader.close()
        if self.world.rank == 0:
            self.report.event("train_finished", step=self.step)
        self.report.heartbeat(self.step, "done")
        self.log.info(f"training finished after step {self.step}")

    def _make_step(self, shape: Shape | None) -> TrainStep:
        """What trains. shape: the one of all samples, None where buckets choose."""
        step = TrainStep(self.config, self.mesh, fixed_shape=shape is not None, folder=self.run_dir)
        if step.encoder is not None and step.encoder.note and self.world.rank == 0:
            self.log.info(step.encoder.note)
        return step

    def _make_order(self, catalogue: Catalogue, shape: Shape | None) -> Order:
        return _order(self.config, self.world, catalogue, shape)

    def _make_catalogue(self, shape: Shape | None) -> Catalogue:
        config = self.config
        check_latents(config, self.run_dir)
        return build_catalogue(
            config.data,
            self.run_dir,
            self.world,
            config.model.caption_channels,
            unfit_rule(config, shape),
            online=config.text is not None,
        )

    def _make_builder(self, catalogue: Catalogue) -> Builder:
        flow = self.train.flow

        def timestep(random: np.random.Generator, shape: Shape) -> float:
            draw = random.standard_normal() if flow.draw_kind == "normal" else random.random()
            return float(flow.draw_timesteps([draw], [shape.frames], [shape.height], [shape.width])[0])

        return SampleBuilder(self.config, catalogue.clips, timestep, self._texts())

    def _make_validation(self) -> Validation | None:
        if self.config.validation is None:
            return None
        return Validation(self.config, self.train, self.run_dir, self._texts())

    def _texts(self) -> Texts | None:
        """Who embeds captions while training; None where they lie embedded."""
        config = self.config
        if config.text is None or config.data.text_embeddings:
            return None
        return OnlineText(build_text_encoder(config.text, self.run_dir, self.log.warning), config.text.cache)

    def _catalogue(self, shape: Shape | None) -> Catalogue:
        catalogue = self._make_catalogue(shape)
        if self.world.rank == 0:
            for clip in catalogue.skipped:
                self.log.warning(f"clip skipped: {clip.path} ({clip.reason})")
                self.report.event("clip_skipped", path=str(clip.path), line=clip.line, reason=clip.reason)
            if catalogue.skipped:
                total = len(catalogue.skipped) + len(catalogue.clips)
                self.log.warning(f"{len(catalogue.skipped)} of {total} clips are skipped")
        return catalogue

    def _loader(self, catalogue: Catalogue) -> Loader:
        return Loader(
            self.order,
            self._make_builder(catalogue),
            rank=self.mesh.dp_rank,
            ranks=self.mesh.dp,
            micro_steps=self.config.gradient_accumulation_steps,
            workers=self.config.data.workers,
            prefetch=self.config.data.prefetch,
            last_step=self.length.bound,
        )

    def _steps(self, loader: Loader) -> None:
        metrics = MetricsFile(self.run_dir, self.world.rank)
        board = None
        if self.config.log.tensorboard and self.world.rank == 0 and not self.length.reached(self.step):
            board = TensorBoard(self.run_dir, self.step + 1 if self.step else 0)
        shapes: set[Shape] = set()
        while not self.length.reached(self.step):
            start = time.perf_counter()
            data = loader.get(self.step)
            compiling = self.train.compiled and data.shape not in shapes
            shapes.add(data.shape)
            self.report.heartbeat(self.step, "compiling" if compiling else "step")
            lr = learning_rate(self.config.optimizer, self.step, self.length.bound)
            self.mesh.traffic.begin(timed=self.world.size > 1 and self.step % TIMED_EVERY[self.world.device] == 0)
            result = self.train.run(data.micro_batches, lr, self.saver.progress())
            self.step += 1
            self._tell(self.saver.settle(result.progress))
            self._account(data, result)
            record = self._metrics(data, result, lr, time.perf_counter() - start)
            if self.step % self.config.log.every == 0 or self.length.reached(self.step):
                metrics.write(record)
                self.log.info(_line(record))
                if board is not None:
                    board.write(record)
            self.report.heartbeat(self.step, "step")
            self._validate(board)
            if self.length.saves(self.step):
                self._save()
            if compiling and self.train.compile_seconds is not None and self.world.rank == 0:
                self.report.event("compiled", seconds=self.train.compile_seconds, shape=str(data.shape))
        self._tell(self.saver.drain())
        if board is not None:
            board.close()

    def _validate(self, board: TensorBoard | None) -> None:
        """The loss on other clips, where it is due."""
        if self._validation is None:
            return
        if self.step % self._validation.every and not self.length.reached(self.step):
            return
        self.report.heartbeat(self.step, "validating")
        found = self._validation.run()
        if self.world.rank == 0:
            shapes = " ".join(f"{shape} {loss:.5f}" for shape, loss in found.by_shape.items())
            self.log.info(f"validation at step {self.step}: loss {found.loss:.5f} of {found.clips} clips ({shapes})")
            self.report.event("validated", step=self.step, **asdict(found))
            if board is not None:
                board.write_validation(self.step, found.loss, found.by_shape)
        self.report.heartbeat(self.step, "step")

    def _account(self, data: StepData, result: StepResult) -> None:
        """Counts what was dropped, names it once, and ends the run when nothing else is left."""
        for batch in data.micro_batches:
            for failure in batch.failures:
                self._name(failure)
        self.skipped += data.samples - round(result.weight)
        if result.applied:
            self.dropped_in_a_row = 0
            return
        self.dropped += 1
        self.dropped_in_a_row += 1
        if result.weight == 0:
            self.log.warning(f"step {self.step} dropped: none of its clips could be decoded")
        else:
            self.log.warning(f"step {self.step} dropped: loss {result.loss} grad_norm {result.grad_norm}")
        if self.dropped_in_a_row < MAX_DROPPED:
            return
        where = f"step {self.step}"
        if result.weight == 0:
            raise PayloadError(
                BAD_DATA,
                f"no clip of {MAX_DROPPED} steps in a row could be decoded",
                where=where,
                why="the clips are named above, and in events.jsonl",
                next_step="replace the damaged clips",
            )
        raise PayloadError(
            NOT_FINITE,
            f"loss or gradients were not finite {MAX_DROPPED} steps in a row",
            where=where,
            why=f"loss {result.loss}, gradient norm {result.grad_norm}",
            next_step="lower the learning rate, or raise warmup_steps",
        )

    def _name(self, failure: Failure) -> None:
        path = failure.clip.path
        if path in self._named:
            return
        self._named.add(path)
        self.log.warning(f"clip skipped: {path} ({failure.reason})")
        self.report.event("clip_skipped", path=str(path), step=self.step, reason=failure.reason)

    def _metrics(self, data: StepData, result: StepResult, lr: float, seconds: float) -> StepMetrics:
        shape = data.shape
        tokens = self.train.tokens(shape.frames, shape.height, shape.width) * data.samples
        return StepMetrics(
            step=self.step,
            steps=self.length.total,
            attempt=self.report.attempt,
            time=time.time(),
            loss=result.loss,
            grad_norm=result.grad_norm,
            lr=lr,
            seconds=seconds,
            data_wait=data.wait,
            tokens_per_s=tokens / seconds,
            samples=data.samples,
            shape=str(shape),
            memory=peak_memory(self.world.device),
            skipped=self.skipped,
            dropped=self.dropped,
            comm=result.comm,
            comm_wait=self.mesh.traffic.waited,
            losses=result.losses,
        )

    def _save(self) -> None:
        self.report.heartbeat(self.step, "saving")
        facts = {
            **state.describe(self.config, self.world, host_threads(self.world.size)),
            "step": self.step,
            "time": time.time(),
            "updates": self.train.update.count,
            "loss_scale": self.train.scale.state(),
            "data": {**self.order.position(self.step), "sha256": self.digest},
            "skipped": self.skipped,
            "dropped": self.dropped,
            **self.train.facts(),
        }
        self._tell(self.saver.begin(self.step, list(self.train.pieces()), facts))
        if not self.config.checkpoint.background:
            self._tell(self.saver.drain())
        self.report.heartbeat(self.step, "step")

    def _tell(self, saved: Saved | None) -> None:
        if saved is None or self.world.rank != 0:
            return
        self.log.info(
            f"checkpoint {saved.path} written in {saved.seconds:.2f} s, of which training waited {saved.stall:.2f} s"
        )
        self.report.event(
            "checkpoint_saved",
            step=saved.step,
            path=str(saved.path),
            seconds=saved.seconds,
            stall=saved.stall,
            bytes=saved.size,
            removed=list(saved.removed),
        )

    def _restore_or_initialize(self) -> None:
        """Continues from the newest whole checkpoint of the run; without one, starts with ``init_from`` or anew."""
        found = find(self.folder, self.world, self.report.node)
        if self.world.rank == 0:
            for note in found.notes:
                self.log.info(note)
            for problem in found.problems:
                self.log.warning(f"checkpoint not usable: {problem}")
        if found.exists:
            self._resume(found)
            return
        self._start()
        state.check_agreement(self.train)
        self.train.prepare()

    def _start(self) -> None:
        """Weights of a run that has no checkpoint yet."""
        if self.config.init_from is not None:
            self._initialize_from(self.run_dir / self.config.init_from)
            self.log.info(f"weights from {self.config.init_from}")
        else:
            state.spread(self.train)

    def _initialize_from(self, path: Path) -> None:
        for line in state.initialize_from(self.train, path):
            self.log.info(f"weights: {line}")

    def _resume(self, found: Found) -> None:
        for line in restore(self.train, found, self.world):
            self.log.warning(line)
        facts = found.state
        self.train.restore_facts(facts)
        self.step, self.skipped, self.dropped = facts["step"], facts["skipped"], facts["dropped"]
        self.log.info(f"resumed from step {self.step} ({found.path})")
        if self.world.rank != 0:
            return
        self.report.event("resumed", step=self.step, path=str(found.path))
        changed = _changes(facts["config"], self.config.model_dump(mode="json"))
        if changed:
            self.log.warning(f"settings changed since that checkpoint: {', '.join(changed[:_NAMED])}")
        if facts["data"]["sha256"] != self.digest:
            self.log.warning("the usable clips are not those of that checkpoint: steps see other samples from here on")
        if facts["layout"]["world"] != self.world.size:
            self.log.warning(f"{facts['layout']['world']} ranks wrote that checkpoint, {self.world.size} go on")

    def _banner(self, catalogue: Catalogue, shape: Shape | None) -> None:
        config, world = self.config, self.world
        self.log.info(f"rank {world.rank} of {world.size} on {world.device}, {self.report.node}")
        if world.rank != 0:
            return
        if self.train.dtype != config.dtype:
            self.log.info(f"training in {self.train.dtype}: {world.device} has no {config.dtype} kernels")
        parameters = sum(param.size for param in self.train.model.get_parameters())
        replicas = world.size * config.gradient_accumulation_steps
        batch = f"global batch {config.batch_size * replicas}" if shape is not None else "batches by bucket"
        optimizer = config.optimizer
        for line in (
            f"recipe {config.recipe or '-'}, {self.length}, seed {config.seed}, {config.jit} jit",
            self._about_model(parameters),
            f"data {len(catalogue.clips)} clips, {len(catalogue.skipped)} skipped, samples {shape or 'by bucket'}",
            f"{batch}: dp {world.size // config.layout.sp}, sp {config.layout.sp}, zero {config.layout.zero}, "
            f"accumulation {config.gradient_accumulation_steps}",
            f"{optimizer.type} lr {optimizer.lr:g} {optimizer.schedule}, warm-up {optimizer.warmup_steps}, "
            f"clip {optimizer.max_grad_norm}, weight decay {optimizer.weight_decay:g}, EMA {config.ema_decay}",
            f"checkpoints every {_interval(config.checkpoint)} in {self.folder}, {config.checkpoint.keep_last} kept",
        ):
            self.log.info(line)

    def _about_model(self, parameters: int) -> str:
        model = self.config.model
        return (
            f"model {model.type}: {parameters:,} parameters, hidden {model.hidden_size}, "
            f"depth {model.depth}, heads {model.num_heads}, patch {list(model.patch_size)}"
        )


def _order(config: TrainConfig, world: World, catalogue: Catalogue, shape: Shape | None) -> Order:
    replicas = world.size // config.layout.sp * config.gradient_accumulation_steps
    return make_order(config, replicas, catalogue.clips, shape)


def _interval(config: CheckpointConfig) -> str:
    return f"{config.every} steps" if config.every_epochs is None else f"{config.every_epochs} epochs"


def _line(record: StepMetrics) -> str:
    total = f"/{record.steps}" if record.steps is not None else ""
    text = (
        f"step {record.step}{total} loss {record.loss:.5f} grad_norm {record.grad_norm:.4f} lr {record.lr:.3e} "
        f"{record.seconds:.3f} s/step wait {record.data_wait:.3f} s {record.tokens_per_s:.0f} tokens/s {record.shape}"
    )
    return text + (f" skipped {record.skipped}" if record.skipped else "")


def _changes(old: Any, new: Any, place: str = "") -> list[str]:
    """Dotted names of settings that differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(set(old) | set(new))
        return [
            change for name in names for change in _changes(old.get(name), new.get(name), f"{place}.{name}".lstrip("."))
        ]
    return [] if old == new else [place]
