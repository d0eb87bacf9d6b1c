"""Text conditions of requests: encoded now, or read from npz files that an earlier step left.

Files hold ``text_emb`` float [L, C] and ``mask`` [L], as the reference's; those of the text stage several of them,
``text_emb`` [N, L, C] and ``mask`` [N, L], with ``loops`` int [loops], the row of every loop, and ``negative``, the row
of the negative prompt, -1 where there is none.
"""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from models.exits import BAD_DATA, PayloadError
from models.files import write_atomic
from models.sampling.requests import Request
from models.text import TextEncoder
from models.text.embeddings import embedding_problem, read_embedding

_KEPT = 64


@dataclass(frozen=True)
class Embedded:
    """A text: y float32 [L, C], mask int32 [L]."""

    y: np.ndarray
    mask: np.ndarray

    def fitted(self, length: int) -> Embedded:
        """Cut, or padded with tokens that the mask hides, to ``length`` tokens."""
        padding = max(0, length - len(self.y))
        y, mask = self.y[:length], (self.mask[:length] != 0).astype(np.int32)
        return Embedded(np.pad(y.astype(np.float32), ((0, padding), (0, 0))), np.pad(mask, (0, padding)))


class Texts(Protocol):
    """Where text conditions come from."""

    def prompt(self, request: Request, loop: int) -> Embedded: ...

    def negative(self, request: Request) -> Embedded | None:
        """None: the network's learned null caption."""


class Encoded:
    """By a text encoder; the latest texts are remembered, since loops and samples repeat them."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._kept: OrderedDict[str, Embedded] = OrderedDict()

    def prompt(self, request: Request, loop: int) -> Embedded:
        return self.of(request.texts[loop])

    def negative(self, request: Request) -> Embedded | None:
        return None if request.negative is None else self.of(request.negative)

    def of(self, text: str) -> Embedded:
        """Texts go through the encoder one by one: neighbours would change their last bits."""
        if text not in self._kept:
            y, mask = self._encoder.encode([text], cleaned=True)
            self._kept[text] = Embedded(y[0, 0], mask[0])
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(text)
        return self._kept[text]


class Cached:
    """From a folder with a file a request: the reference's, one text for all loops."""

    def __init__(self, folder: Path, max_length: int, channels: int) -> None:
        self._folder, self._length, self._channels = folder, max_length, channels

    def prompt(self, request: Request, loop: int) -> Embedded:
        return Embedded(*read_embedding(self._folder / request.embedding, self._length, self._channels))

    def negative(self, request: Request) -> Embedded | None:
        if request.negative is not None:
            raise PayloadError(
                BAD_DATA,
                "a negative prompt needs the text encoder",
                where="sample.negative_prompt",
                why="text_embeddings hold the prompts alone",
                next_step="use stage: text, which embeds both, or leave negative_prompt out",
            )
        return None


class Staged:
    """From what the text stage left."""

    def __init__(self, folder: Path, channels: int) -> None:
        self._folder, self._channels = folder, channels

    def prompt(self, request: Request, loop: int) -> Embedded:
        arrays = self._read(request)
        row = int(arrays["loops"][loop])
        return Embedded(arrays["text_emb"][row], arrays["mask"][row])

    def negative(self, request: Request) -> Embedded | None:
        arrays = self._read(request)
        row = int(arrays["negative"])
        return None if row < 0 else Embedded(arrays["text_emb"][row], arrays["mask"][row])

    def _read(self, request: Request) -> dict[str, np.ndarray]:
        path = text_file(self._folder, request)
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in ("text_emb", "mask", "loops", "negative", "texts")}
        except FileNotFoundError:
            raise _bad(path, "the text stage has not embedded this prompt", "", "run stage: text first") from None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            raise _bad(path, "a file of the text stage cannot be read", str(error), "run stage: text again") from None
        if arrays["texts"].tolist() != list(_wanted(request)):
            raise _bad(path, "the text stage embedded other prompts", "", "run stage: text again")
        if arrays["text_emb"].shape[-1] != self._channels:
            why = f"they have {arrays['text_emb'].shape[-1]} channels, the model wants {self._channels}"
            raise _bad(path, "embeddings do not fit the model", why, "use the text encoder the model was trained with")
        return arrays


def write_texts(folder: Path, request: Request, encoded: Encoded) -> Path:
    """What the text stage leaves of a request."""
    wanted = _wanted(request)
    distinct = list(dict.fromkeys(wanted))
    found = [encoded.of(text) for text in distinct]
    rows = [distinct.index(text) for text in wanted]
    data = io.BytesIO()
    np.savez(
        data,
        text_emb=np.stack([text.y for text in found]),
        mask=np.stack([text.mask for text in found]).astype(np.uint8),
        loops=np.array(rows[: len(request.texts)]),
        negative=np.array(rows[-1] if request.negative is not None else -1),
        texts=np.array(wanted),
    )
    path = text_file(folder, request)
    write_atomic(path, data.getvalue())
    return path


def text_file(folder: Path, request: Request) -> Path:
    return folder / f"{request.stem}.npz"


def _wanted(request: Request) -> tuple[str, ...]:
    """Texts of all loops, then the negative prompt where there is one."""
    return request.texts if request.negative is None else (*request.texts, request.negative)


def check_embeddings(folder: Path, requests: Sequence[Request], channels: int) -> None:
    """PayloadError for the first file that does not fit, before anything is computed."""
    for request in requests:
        problem = embedding_problem(folder / request.embedding, channels)
        if problem:
            raise _bad(folder / request.embedding, "text embedding cannot be used", problem, "compute it again")


def _bad(path: Path, what: str, why: str, next_step: str) -> PayloadError:
    return PayloadError(BAD_DATA, what, where=str(path), why=why, next_step=next_step)
