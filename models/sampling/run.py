"""One rank's part of a sampling task: its share of the prompts, from texts to files."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models import text
from models.config.sample import SampleConfig
from models.exits import BAD_CONFIG, PayloadError
from models.parallel.mesh import Mesh
from models.parallel.microbatch import own_pieces
from models.sampling.coder import Coder
from models.sampling.engine import Engine
from models.sampling.latents import Sampled, join_clips, read_latents, write_latents
from models.sampling.network import load_network
from models.sampling.progress import Progress
from models.sampling.references import References
from models.sampling.requests import Request, build_requests
from models.sampling.results import Results, prepare_records
from models.sampling.setup import complete
from models.sampling.shapes import Shape, alignment, repeated_frames, result_frames, shape_of
from models.sampling.texts import Cached, Encoded, Staged, Texts, check_embeddings, text_file, write_texts
from models.sampling.writers import result_path, to_bytes, write_result
from models.task import Task


class SampleRun:
    """A stage, or all of them, on this rank."""

    def __init__(self, config: SampleConfig, task: Task) -> None:
        self.task, self.root = task, task.run_dir / config.root
        self.config, self.source = complete(config, self.root)
        self.mesh = Mesh(task.world, config.layout)
        self.folder = self.root / config.output.dir
        device = task.world.device
        # The CPU has hardly any bfloat16 kernels: it samples in float32 whatever the recipe says.
        self.dtype = self.config.dtype if device == "Ascend" else "fp32"

    def run(self) -> None:
        """To the end of this rank's share. PayloadError for what the user can mend."""
        self.task.report.heartbeat(0, "loading")
        if self.task.world.leader:
            prepare_records(self.task.run_dir)
        self.task.world.barrier()
        weights = self.source.mark() if self.source is not None else ""
        self.results = Results(self.task.run_dir, self.folder, self.config, weights)
        self._progress = self._make_progress(0)
        self._banner()
        {"text": self._embed, "latents": self._sample, "all": self._sample, "decode": self._decode}[self.config.stage]()
        # A rank that leaves while another still receives breaks that one's last collective.
        self.task.world.barrier()
        self.task.report.heartbeat(self._progress.step, "done")
        if self.task.world.rank == 0:
            self.task.report.event("sample_finished", stage=self.config.stage)
        self.task.log.info("sampling finished")

    def _embed(self) -> None:
        """Stage text: an npz file a request."""
        folder = self.folder / "text"
        requests = self._left(lambda request: text_file(folder, request))
        encoded = Encoded(self._encoder())
        progress = self._expect(len(requests))
        for request in requests:
            progress.begin("step")
            start = time.perf_counter()
            path = write_texts(folder, request, encoded)
            self._finished(path, request, time.perf_counter() - start, progress)

    def _sample(self) -> None:
        """Stages latents and all."""
        config, latents = self.config, self.folder / "latents"
        shape = shape_of(self.config)
        requests = self._left(
            lambda request: (
                latents / f"{request.stem}.npz"
                if config.stage == "latents"
                else result_path(self.folder / request.stem, config.output.format, result_frames(config))
            )
        )
        if not requests:
            return
        batches = [requests[first : first + config.batch_size] for first in range(0, len(requests), config.batch_size)]
        engine, coder = self._engine(shape, requests, len(batches) * config.loop)
        references = References(self.root, (shape.height, shape.width), coder.encode)
        progress = self._expect(len(batches) * config.loop * engine.steps + len(requests))
        for batch in batches:
            start = time.perf_counter()
            progress.begin("step")
            found = [[references.get(path) for path in request.references] for request in batch]
            clips = engine.clips(batch, found, progress.done)
            seconds = (time.perf_counter() - start) / len(batch)
            for row, request in enumerate(batch):
                sampled = self._sampled(request, np.stack([clip[row] for clip in clips]), shape)
                self._deliver(request, sampled, seconds, coder, progress)

    def _sampled(self, request: Request, latents: np.ndarray, shape: Shape) -> Sampled:
        facts = {"key": self.results.key(request), "steps": self.config.num_sampling_steps, **_facts(request)}
        return Sampled(request.stem, latents, shape.frames, repeated_frames(self.config), facts)

    def _deliver(self, request: Request, sampled: Sampled, seconds: float, coder: Coder, progress: Progress) -> None:
        """Latents or a finished result, written by the first rank of those that share it."""
        start = time.perf_counter()
        if self.config.stage == "latents":
            path = self.folder / "latents" / f"{sampled.stem}.npz"
            if self.mesh.sp_rank == 0:
                write_latents(self.folder / "latents", sampled)
            facts: dict[str, Any] = {}
        else:
            path, facts = self._write(sampled, coder)
        progress.done("saving")
        self._record(path, {**sampled.facts, **facts}, seconds + time.perf_counter() - start)

    def _decode(self) -> None:
        """Stage decode: every file of latents in the output folder."""
        folder = self.folder / "latents"
        files = sorted(folder.rglob("*.npz")) if folder.is_dir() else []
        if not files:
            raise PayloadError(
                BAD_CONFIG, "there are no latents to decode", where=str(folder), next_step="run stage: latents first"
            )
        first, last = own_pieces(len(files), self.mesh.dp, self.mesh.dp_rank)
        found = [read_latents(folder, path) for path in files[first:last]]
        kind = self.config.output.format
        wanted = [
            (result_path(self.folder / one.stem, kind, one.frames * len(one.latents)), str(one.facts.get("key")))
            for one in found
        ]
        left = [found[number] for number in self._agreed(self.results.open(wanted))]
        if not left:
            return
        coder = self._coder()
        progress = self._expect(len(left))
        for one in left:
            start = time.perf_counter()
            progress.begin("step")
            path, facts = self._write(one, coder)
            progress.done("saving")
            self._record(path, {**one.facts, **facts}, time.perf_counter() - start)

    def _write(self, sampled: Sampled, coder: Coder) -> tuple[Path, dict[str, Any]]:
        """Decodes and writes a result; its path, and what its record says of it."""
        clips = [coder.decode(latents[None], sampled.frames)[0] for latents in sampled.latents]
        frames = to_bytes(join_clips(clips, sampled.repeated))
        kind, fps = self.config.output.format, self.config.save_fps
        stem = self.folder / sampled.stem
        path = result_path(stem, kind, len(frames))
        if self.mesh.sp_rank == 0:
            write_result(stem, frames, kind, fps)
        count, height, width, _ = frames.shape
        return path, {"frames": count, "height": height, "width": width, "fps": fps}

    def _left(self, path_of: Any) -> list[Request]:
        """This rank's requests whose results are not there yet."""
        requests = build_requests(self.config, self.root)
        first, last = own_pieces(len(requests), self.mesh.dp, self.mesh.dp_rank)
        mine = requests[first:last]
        left = self._agreed(self.results.open([(path_of(request), self.results.key(request)) for request in mine]))
        self.task.log.info(
            f"{len(left)} of {len(requests)} results to make on this rank"
            + (f", {len(mine) - len(left)} are there already" if len(mine) > len(left) else "")
        )
        return [mine[number] for number in left]

    def _agreed(self, left: list[int]) -> list[int]:
        """What the first of the ranks that share a result sees: nodes may have folders of their own."""
        if self.mesh.sp == 1:
            return left
        told = self.task.world.gather_bytes(json.dumps(left).encode())
        agreed: list[int] = json.loads(told[self.mesh.sp_group.ranks[0]])
        return agreed

    def _engine(self, shape: Shape, requests: Sequence[Request], clips: int) -> tuple[Engine, Coder]:
        """clips: how many batches of clips are sampled."""
        assert self.config.model is not None and self.source is not None
        texts = self._texts(requests)
        model, lines = load_network(self.config, self.source, shape.latent, self.mesh, self.dtype)
        for line in lines if self.mesh.rank == 0 else ():
            self.task.log.info(line)
        compiled = self.config.compiles(clips * self.config.num_sampling_steps)
        if compiled:
            self.task.report.heartbeat(0, "compiling")
        engine = Engine(self.config, model, shape, texts, alignment(self.config), compiled)
        return engine, self._coder()

    def _coder(self) -> Coder:
        return Coder(self.config, self.root, self.mesh, self.task.log)

    def _texts(self, requests: Sequence[Request]) -> Texts:
        config = self.config
        assert config.model is not None
        channels = config.model.caption_channels
        if config.text_embeddings:
            folder = self.root / config.text_embeddings
            check_embeddings(folder, requests, channels)
            return Cached(folder, config.model.model_max_length, channels)
        if config.stage == "latents":
            return Staged(self.folder / "text", channels)
        return Encoded(self._encoder())

    def _encoder(self) -> text.TextEncoder:
        config = self.config
        assert config.text is not None
        told = config.text
        if config.model is not None:
            # The encoder cuts what the network has no room for, and says so.
            told = told.model_copy(update={"max_length": min(told.max_length, config.model.model_max_length)})
        encoder = text.build(told, self.root, self.task.log.warning)
        if config.model is not None and encoder.channels != config.model.caption_channels:
            raise PayloadError(
                BAD_CONFIG, "the text encoder does not fit the model", where="sample.text",
                why=f"it gives {encoder.channels} channels, the model takes {config.model.caption_channels}",
                next_step="name the text encoder the model was trained with",
            )  # fmt: skip
        return encoder

    def _expect(self, total: int) -> Progress:
        """Progress of a stage of so many steps."""
        self._progress = self._make_progress(total)
        return self._progress

    def _make_progress(self, total: int) -> Progress:
        return Progress(self.task.run_dir, self.task.report, self.task.log, self.task.world.device, total)

    def _finished(self, path: Path, request: Request, seconds: float, progress: Progress) -> None:
        progress.done("saving")
        self._record(path, {"key": self.results.key(request), **_facts(request)}, seconds)

    def _record(self, path: Path, facts: dict[str, Any], seconds: float) -> None:
        self.task.step = self._progress.step
        if self.mesh.sp_rank != 0:
            return
        self.results.record(path, {**facts, "seconds": round(seconds, 3), "rank": self.task.world.rank})
        self.task.report.event("sample_written", path=str(path), seconds=seconds)
        self.task.log.info(f"{path} written, {seconds:.1f} s")

    def _banner(self) -> None:
        config, world = self.config, self.task.world
        self.task.log.info(f"rank {world.rank} of {world.size} on {world.device}, {self.task.report.node}")
        if world.rank != 0:
            return
        if self.dtype != config.dtype:
            self.task.log.info(f"sampling in {self.dtype}: {world.device} has no {config.dtype} kernels")
        size = config.size
        shown = f"{config.frames} frames of {size[0]}x{size[1]}" if size is not None else "latents that are there"
        self.task.log.info(f"stage {config.stage}: {shown}, seed {config.seed}, recipe {config.recipe or '-'}")
        if config.stage in ("latents", "all"):
            self.task.log.info(
                f"{config.sampler}, {config.num_sampling_steps} steps, guidance {config.guidance_scale:g}, "
                f"loop {config.loop}, dp {self.mesh.dp}, sp {self.mesh.sp} {config.layout.sp_kind}"
            )
        self.task.report.event("sample_started", stage=config.stage)


def _facts(request: Request) -> dict[str, Any]:
    """What a record says of its request."""
    facts: dict[str, Any] = {
        "prompt": request.prompt, "index": request.index, "sample": request.sample, "seed": request.seed
    }  # fmt: skip
    if request.references:
        facts |= {"reference_path": ";".join(request.references), "mask_strategy": request.strategy}
    if request.negative is not None:
        facts["negative_prompt"] = request.negative
    return facts
