"""The whole story, from nothing: ``python -m demos.shapes.story OUT [--short]``; ``make demo-full`` tells it.

Clips are drawn, a small 3-D autoencoder learns in three stages, latents and embeddings are cached, a small STDiT3
learns under sequence and data parallelism, videos are made from captions and from pictures, and what they show is
measured.
Every step is one of ostrain's own commands. Steps that an interrupted telling has finished are not told again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demos.shapes import dataset
from demos.shapes.commands import CommandFailed, Commands
from demos.shapes.results import Results, latent_statistics, reference_pictures, tell

JOBS = Path(__file__).parent / "jobs"
REAL = Path(__file__).parents[2] / "jobs" / "quickstart"
TEXT = ("--hashed", "--max-length", "16", "--channels", "64")


@dataclass(frozen=True)
class Size:
    """How long the story is: training clips, and steps of every training."""

    clips: int
    image: int
    stages: tuple[int, int, int]
    sequence: int
    data: int
    sampling_steps: int


FULL = Size(clips=400, image=800, stages=(300, 30, 250), sequence=40, data=1800, sampling_steps=30)
SHORT = Size(clips=40, image=3, stages=(2, 2, 2), sequence=2, data=3, sampling_steps=2)


class Story:
    """The chapters in their order; ``notes.json`` remembers what each has made."""

    def __init__(self, folder: Path, size: Size) -> None:
        self.folder, self.size = folder.resolve(), size
        self.ostrain = Commands(self.folder / "home")
        self._notes_file = self.folder / "notes.json"
        self.notes: dict[str, Any] = {}
        if self._notes_file.exists():
            self.notes = json.loads(self._notes_file.read_text())

    def tell(self) -> Results:
        chapters: tuple[tuple[str, Callable[[], Any]], ...] = (
            ("clips", self.clips),
            ("vae_image", self.vae_image),
            ("vae_stage1", lambda: self.vae_stage(1, "vae_image")),
            ("vae_stage2", lambda: self.vae_stage(2, "vae_stage1")),
            ("vae_stage3", lambda: self.vae_stage(3, "vae_stage2")),
            ("vae_quality", self.vae_quality),
            ("statistics", self.statistics),
            ("latents", self.latents),
            ("embeddings", self.embeddings),
            ("sequence_parallel", self.sequence_parallel),
            ("data_parallel", self.data_parallel),
            ("untrained_videos", lambda: self.videos("untrained", "untrained")),
            ("videos", lambda: self.videos("trained", "data_parallel")),
            ("pictures_continued", self.pictures_continued),
        )
        for name, chapter in chapters:
            if name not in self.notes:
                start = time.monotonic()
                print(f"\n=== {name.replace('_', ' ')}", flush=True)
                made = chapter()
                self.notes[name] = {"made": made, "seconds": round(time.monotonic() - start, 1)}
                self._notes_file.write_text(json.dumps(self.notes, indent=1) + "\n")
        return tell(self.folder, self.notes)

    def made(self, chapter: str) -> Any:
        return self.notes[chapter]["made"]

    def clips(self) -> dict[str, int]:
        dataset.clear(self.folder / "data")
        return dataset.make(self.folder / "data", self.size.clips, REAL)

    def clip_settings(self, task: str) -> list[str]:
        data = self.folder / "data"
        paths = [f"{task}.data.annotations={data / 'train.csv'}", f"{task}.data.videos={data / 'videos'}"]
        # Compiling takes longer than a few steps.
        return paths + ([f"{task}.jit=off"] if self.size == SHORT else [])

    def vae_image(self) -> str:
        settings = [*self.clip_settings("train_vae"), f"train_vae.steps={self.size.image}"]
        return self.exported(self.ostrain.submit(JOBS / "vae_image.yaml", settings), "vae_image")

    def vae_stage(self, number: int, before: str) -> str:
        """A stage starts from the file the one before has left; the first one takes only its image part from there."""
        key = "autoencoder.pretrained_2d" if number == 1 else "init_from"
        settings = [
            *self.clip_settings("train_vae"),
            f"train_vae.steps={self.size.stages[number - 1]}",
            f"train_vae.{key}={self.made(before)}",
        ]
        return self.exported(self.ostrain.submit(JOBS / f"vae_stage{number}.yaml", settings), f"vae_stage{number}")

    def exported(self, run: str, name: str, *options: str) -> str:
        path = self.folder / "weights" / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        self.ostrain.run("ckpt", "export", run, path, "--force", *options)
        return str(path)

    def autoencoder_settings(self) -> list[str]:
        """``--set`` words for commands that take the autoencoder's configuration from a job."""
        return ["--set", f"autoencoder.pretrained={self.made('vae_stage3')}"]

    def vae_quality(self) -> Any:
        data = self.folder / "data"
        return self.ostrain.data(
            "eval", "vae", data / "held_out.csv", "--config", JOBS / "eval.yaml", "--weights", self.made("vae_stage3"),
            "--set", f"data.videos={data / 'videos'}", "--out", self.folder / "eval",
        )  # fmt: skip

    def statistics(self) -> dict[str, list[float]]:
        """Mean and deviation of latents by channel, so that training sees numbers around 1."""
        raw = self.folder / "latents-raw"
        self.cache("held_out.csv", raw, ["--set", "autoencoder.scale=1.0", "--set", "autoencoder.shift=0.0"])
        return latent_statistics(raw)

    def latents(self) -> str:
        self.cache("train.csv", self.folder / "latents", self.scaled("autoencoder"))
        return str(self.folder / "latents")

    def cache(self, listed: str, out: Path, settings: list[str]) -> None:
        data = self.folder / "data"
        self.ostrain.run(
            "data", "cache-latents", data / listed, "--videos", data / "videos", "--out", out, "--workers", "2",
            "--config", JOBS / "cache.yaml", *self.autoencoder_settings(), *settings,
        )  # fmt: skip

    def scaled(self, prefix: str) -> list[str]:
        return [
            word for key in ("scale", "shift") for word in ("--set", f"{prefix}.{key}={self.made('statistics')[key]}")
        ]

    def embeddings(self) -> str:
        out = self.folder / "embeddings"
        self.ostrain.run("data", "embed-text", self.folder / "data" / "train.csv", "--out", out, *TEXT)
        return str(out)

    def train_settings(self) -> list[str]:
        statistics = self.made("statistics")
        return [
            *self.clip_settings("train"),
            f"train.data.latents={self.made('latents')}",
            f"train.data.text_embeddings={self.made('embeddings')}",
            f"train.autoencoder.pretrained={self.made('vae_stage3')}",
            f"train.autoencoder.scale={statistics['scale']}",
            f"train.autoencoder.shift={statistics['shift']}",
        ]

    def sequence_parallel(self) -> str:
        """The first steps: two workers share every clip."""
        steps = [f"train.steps={self.size.sequence}", "train.optimizer.schedule=constant", "train.jit=off"]
        run = self.ostrain.submit(JOBS / "dit.yaml", [*self.train_settings(), *steps, "layout={sp: 2, sp_kind: dsp}"])
        return self.run_folder(run)

    def data_parallel(self) -> str:
        """The rest: every worker has clips of its own."""
        steps = [f"train.steps={self.size.data}", f"train.init_from={self.newest(self.made('sequence_parallel'))}"]
        run = self.ostrain.submit(JOBS / "dit.yaml", [*self.train_settings(), *steps])
        return self.run_folder(run)

    def newest(self, run: str) -> str:
        """The last checkpoint in a run directory."""
        steps = (Path(run) / "checkpoints").glob("step-*")
        return str(max(steps, key=lambda path: int(path.name.removeprefix("step-"))))

    def videos(self, name: str, chapter: str) -> list[dict[str, Any]]:
        if chapter == "untrained":
            steps = ["train.steps=1", "train.optimizer.lr=1.0e-12", "train.jit=off"]
            run = self.run_folder(self.ostrain.submit(JOBS / "dit.yaml", [*self.train_settings(), *steps]))
        else:
            run = self.made(chapter)
        return self.sampled(run, self.folder / "data" / "prompts.csv", self.folder / "samples" / name)

    def pictures_continued(self) -> list[dict[str, Any]]:
        """Image to video: the first frame is given, and the caption says how it goes on."""
        prompts = reference_pictures(self.folder / "references")
        return self.sampled(self.made("data_parallel"), prompts, self.folder / "samples" / "continued")

    def sampled(self, run: str, prompts: Path, out: Path) -> list[dict[str, Any]]:
        told = self.ostrain.run(
            "sample", "--weights", run, "--out", out, "--workers", "2", "--overwrite", "--json",
            "--set", f"prompt_path={prompts}", "--set", "text={type: hashed, max_length: 16, channels: 64}",
            "--set", "image_size=[32, 32]", "--set", "num_frames=17", "--set", f"fps={dataset.FPS}",
            "--set", f"num_sampling_steps={self.size.sampling_steps}", "--set", "guidance_scale=3.0",
            "--set", "dtype=fp32", "--set", "seed=1",
        )  # fmt: skip
        return [json.loads(line) for line in told.splitlines()]

    def run_folder(self, run: str) -> str:
        """The run directory of a local run: it knows the model that was trained in it."""
        (folder,) = (self.folder / "home" / "state" / "ostrain" / "runs" / run).iterdir()
        return str(folder)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demos.shapes.story", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="folder for everything the story makes")
    parser.add_argument(
        "--short", action="store_true", help="a few steps of everything: that it runs, not that it learns"
    )
    options = parser.parse_args(arguments)
    try:
        results = Story(options.out, SHORT if options.short else FULL).tell()
    except CommandFailed as error:
        print(f"\nerror: {error}\n  next: mend what is said above and give the same command again", file=sys.stderr)
        return 1
    return 0 if results.good or options.short else 1


if __name__ == "__main__":
    sys.exit(main())
