"""Stand-in text embeddings: a pseudo-random vector for every word. ``python -m models.text.hashed CSV OUT``.

They stand in for T5 where its weights are not at hand: for demonstrations and tests. Equal words get equal vectors
and different words unrelated ones, so captions can be told apart, but no meaning is in them. A model trained on them
understands no other text.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from pathlib import Path

import numpy as np

from models.data.annotations import read_annotations
from models.exits import PayloadError

MAX_LENGTH = 16
CHANNELS = 64


def embed(caption: str, max_length: int = MAX_LENGTH, channels: int = CHANNELS) -> tuple[np.ndarray, np.ndarray]:
    """(text_emb float32 [max_length, channels], mask uint8 [max_length]); the last token marks the end of the text."""
    words = _words(caption)[: max_length - 1] + ["</s>"]
    text = np.zeros((max_length, channels), np.float32)
    for place, word in enumerate(words):
        key = np.frombuffer(hashlib.blake2b(word.encode(), digest_size=16).digest(), dtype="<u8").astype(np.uint64)
        text[place] = np.random.Generator(np.random.Philox(key=key)).standard_normal(channels, dtype=np.float32)
    mask = np.zeros(max_length, np.uint8)
    mask[: len(words)] = 1
    return text, mask


def length(caption: str) -> int:
    """Tokens of a caption that is not cut, the end token included."""
    return len(_words(caption)) + 1


def _words(caption: str) -> list[str]:
    return re.findall(r"\w+", caption.lower())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m models.text.hashed", description=__doc__.split("\n")[0])
    parser.add_argument("csv", type=Path, help="annotations: video,caption")
    parser.add_argument("out", type=Path, help="folder for the npz files")
    parser.add_argument("--length", type=int, default=MAX_LENGTH, help="tokens a caption (default %(default)s)")
    parser.add_argument("--channels", type=int, default=CHANNELS, help="size of a vector (default %(default)s)")
    parser.add_argument("--video-column", default="video")
    parser.add_argument("--caption-column", default="caption")
    options = parser.parse_args(arguments)
    try:
        rows = read_annotations(options.csv, options.video_column, options.caption_column)
    except PayloadError as error:
        print(f"error: {error.what}\n  where: {error.where}\n  next: {error.next_step}", file=sys.stderr)
        return error.exit_code
    for row in rows:
        text, mask = embed(row.caption, options.length, options.channels)
        target = options.out / Path(row.video.lstrip("/")).with_suffix(".npz")
        target.parent.mkdir(parents=True, exist_ok=True)
        np.savez(target, text_emb=text, mask=mask)
    print(f"{len(rows)} stand-in embeddings in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
