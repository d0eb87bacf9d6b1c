"""Prompts from the configuration, a text file, a CSV, or the names of embeddings."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path

from models.config.sample import SampleConfig
from models.exits import BAD_DATA, PayloadError

# Columns of a CSV that hold the prompt, the first of them that is there.
TEXT_COLUMNS = ("prompt", "caption", "text")
OTHER_COLUMNS = ("negative_prompt", "reference_path", "mask_strategy", "seed", "name")


@dataclass(frozen=True)
class Prompt:
    """A prompt as it was written, where it stands, and what its row of a CSV says besides (None or empty: nothing).

    embedding: name of its npz file where prompts are embedded already.
    """

    text: str
    where: str
    negative: str | None = None
    reference_path: str = ""
    mask_strategy: str = ""
    seed: int | None = None
    name: str = ""
    embedding: str = ""


def read_prompts(config: SampleConfig, root: Path) -> list[Prompt]:
    """All prompts in order, never none. PayloadError names file and line of what is wrong."""
    found = [Prompt(text, f"sample.prompts.{number}") for number, text in enumerate(config.prompts)]
    if config.prompt_path:
        found = _of_file(root / config.prompt_path)
    if not config.text_embeddings:
        return found
    return _with_embeddings(found, root / config.text_embeddings)


def _of_file(path: Path) -> list[Prompt]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise _bad(path, "file of prompts does not exist", "correct sample.prompt_path") from None
    except UnicodeDecodeError as error:
        raise _bad(path, "file of prompts is not UTF-8", "save it as UTF-8", str(error)) from None
    except OSError as error:
        raise _bad(path, "file of prompts cannot be read", "check its permissions", error.strerror or "") from None
    if path.suffix.lower() == ".csv":
        found = _rows(path, text)
    else:
        lines = enumerate(text.splitlines(), 1)
        found = [Prompt(line.strip(), f"{path}:{number}") for number, line in lines if line.strip()]
    if not found:
        raise _bad(path, "file of prompts is empty", "write one prompt a line")
    return found


def _rows(path: Path, text: str) -> list[Prompt]:
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
    column = next((name for name in TEXT_COLUMNS if name in reader.fieldnames), None)
    if column is None:
        raise _bad(
            path,
            f"file of prompts has no column {' or '.join(TEXT_COLUMNS[:2])}",
            "correct its header",
            f"it is {','.join(reader.fieldnames) or 'empty'}",
            1,
        )
    found = []
    try:
        for row in reader:
            line = reader.line_num
            if None in row or row[column] is None:
                raise _bad(path, "row has another number of columns than the header", "correct the row", "", line)
            values = {name: (row.get(name) or "").strip() for name in OTHER_COLUMNS}
            found.append(
                Prompt(
                    text=row[column].strip(),
                    where=f"{path}:{line}",
                    negative=values["negative_prompt"] or None,
                    reference_path=values["reference_path"],
                    mask_strategy=values["mask_strategy"],
                    seed=_seed(path, values["seed"], line),
                    name=values["name"],
                )
            )
    except csv.Error as error:
        raise _bad(path, "file of prompts is not valid CSV", "quote its fields", str(error), reader.line_num) from None
    return found


def _seed(path: Path, text: str, line: int) -> int | None:
    if not text:
        return None
    if not text.isdigit() or int(text) >= 2**32:
        raise _bad(path, f"seed {text!r} is not a whole number below 2^32", "correct the row", "", line)
    return int(text)


def _with_embeddings(prompts: list[Prompt], folder: Path) -> list[Prompt]:
    """Prompts, or names of files where there are none, with the embeddings of the folder in the order of names."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.npz")) if folder.is_dir() else []
    if not names:
        raise _bad(folder, "there are no text embeddings", "embed the prompts first, or leave text_embeddings out")
    if not prompts:
        stems = [name.removesuffix(".npz") for name in names]
        return [
            Prompt(Path(stem).name, str(folder / name), name=stem.replace("/", "_"), embedding=name)
            for stem, name in zip(stems, names, strict=True)
        ]
    if len(prompts) != len(names):
        raise _bad(
            folder,
            f"there are {len(names)} text embeddings for {len(prompts)} prompts",
            "keep as many files as prompts, or give no prompts: files then name the results",
        )
    return [replace(prompt, embedding=name) for prompt, name in zip(prompts, names, strict=True)]


def _bad(path: Path, what: str, next_step: str, why: str = "", line: int = 0) -> PayloadError:
    return PayloadError(BAD_DATA, what, where=f"{path}:{line}" if line else str(path), why=why, next_step=next_step)
