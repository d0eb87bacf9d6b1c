"""Embeds captions: ``python -m models.embed_text --config embed_text.yaml [--run-dir .]``, alone or under msrun.

Captions of a CSV become ``<out>/<video path without suffix>.npz`` with ``text_emb`` float32 [L, C] and ``mask`` uint8
[L]; prompts of a text file ``<out>/<number>-<first words>.npz`` with a leading axis of 1 and ``tokens`` besides. Ranks
share the captions; what is there and whole is kept, so it may be started again at any time. Files appear whole.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.config.embed_text import EmbedTextConfig
from models.exits import BAD_CONFIG, BAD_DATA, PayloadError
from models.task import Task, run_task

if TYPE_CHECKING:
    from models.data.sharing import Counter
    from models.text.encoder import TextEncoder

_WORDS = 10
_NAME_BYTES = 200


@dataclass(frozen=True)
class Caption:
    """A text and the file it is embedded to; ``line`` of the file it comes from."""

    text: str
    target: Path
    line: int


def read(path: Path) -> EmbedTextConfig:
    """The checked configuration in ``path``. PayloadError."""
    from models.settings import read_task_config

    config = read_task_config(path, EmbedTextConfig)
    if bool(config.annotations) == bool(config.prompts):
        said = "both" if config.annotations else "neither"
        raise _bad_config(path, f"{said} of annotations and prompts is set", "set one of them")
    if not config.out:
        raise _bad_config(path, "out is not set", "set it to the folder for the embeddings")
    if not config.text.has_weights:
        raise _bad_config(path, "text.pretrained is not set", "set it to T5's folder, or text.type to hashed")
    return config


def embed(config: EmbedTextConfig, task: Task) -> None:
    """This rank's captions."""
    from models.data.sharing import Counter, share
    from models.text import build

    captions = captions_of(config, task.run_dir)
    mine = share(captions, task)
    task.log.info(f"{len(captions)} captions, {len(mine)} of them for rank {task.world.rank} of {task.world.size}")
    task.report.heartbeat(0, "loading")
    encoder = build(config.text, task.run_dir, task.log.warning)
    counter = Counter(task, "embeddings", len(mine))
    for batch in _batches(mine, config, encoder, counter):
        _embed(batch, encoder, bool(config.prompts))
        counter.add("done", len(batch))
    counter.finish("text_embedded", out=str(task.run_dir / config.out), channels=encoder.channels)


def captions_of(config: EmbedTextConfig, base: Path) -> list[Caption]:
    """All captions, in order. PayloadError: unreadable files, paths out of ``out``, two texts for one file."""
    out = base / config.out
    if config.prompts:
        return _prompts(base / config.prompts, out)
    from models.data.annotations import read_annotations
    from models.data.names import npz_name

    path = base / config.annotations
    found: dict[Path, Caption] = {}
    for row in read_annotations(path, config.video_column, config.caption_column):
        try:
            caption = Caption(row.caption, out / npz_name(row.video), row.line)
        except ValueError as error:
            raise _bad_data(path, row.line, "embedding has no place", str(error), "correct the path") from None
        other = found.setdefault(caption.target, caption)
        if other.text != caption.text:
            why = f"{row.video} and the clip of line {other.line} share {caption.target.name}, their captions differ"
            raise _bad_data(path, row.line, "two captions for one embedding", why, "remove or rename one of them")
    return list(found.values())


def _prompts(path: Path, out: Path) -> list[Caption]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise _bad_data(path, 0, "file of prompts cannot be read", why, "correct prompts: a UTF-8 text file") from None
    texts = [(line.strip(), number) for number, line in enumerate(lines, 1) if line.strip()]
    if not texts:
        raise _bad_data(path, 0, "file of prompts is empty", "", "write one prompt a line")
    width = max(3, len(str(len(texts) - 1)))
    return [
        Caption(text, out / f"{index:0{width}d}-{_first_words(text)}.npz", line)
        for index, (text, line) in enumerate(texts)
    ]


def _first_words(prompt: str) -> str:
    """The reference's names: the first ten words with hyphens; what a file name cannot hold is cut."""
    words = "-".join(prompt.replace("/", "").replace("\0", "").split(" ")[:_WORDS])
    return words.encode()[:_NAME_BYTES].decode(errors="ignore")


def _batches(
    captions: Sequence[Caption], config: EmbedTextConfig, encoder: TextEncoder, counter: Counter
) -> Iterator[list[Caption]]:
    """What is to be embedded, in batches; what is whole already is counted."""
    from models.text.embeddings import whole_embedding

    batch: list[Caption] = []
    for caption in captions:
        if not config.overwrite and whole_embedding(caption.target, encoder.max_length, encoder.channels):
            counter.add("kept")
            continue
        batch.append(caption)
        if len(batch) == config.batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _embed(batch: list[Caption], encoder: TextEncoder, prompts: bool) -> None:
    from models.data.npz import write_npz

    found, masks, tokens = encoder.encode_with_tokens([caption.text for caption in batch])
    for row, caption in enumerate(batch):
        part = slice(row, row + 1) if prompts else row
        arrays = {"mask": masks[part], "text_emb": found[part]}
        if prompts:
            arrays["tokens"] = tokens[part]
        write_npz(caption.target, arrays)


def _bad_config(path: Path, what: str, next_step: str) -> PayloadError:
    return PayloadError(BAD_CONFIG, what, where=str(path), next_step=next_step)


def _bad_data(path: Path, line: int, what: str, why: str, next_step: str) -> PayloadError:
    return PayloadError(BAD_DATA, what, where=f"{path}:{line}" if line else str(path), why=why, next_step=next_step)


def main(arguments: list[str] | None = None) -> int:
    return run_task("embed_text", __doc__ or "", read, embed, arguments)


if __name__ == "__main__":
    sys.exit(main())
