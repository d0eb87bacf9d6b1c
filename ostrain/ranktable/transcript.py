"""What a node answered, as one text: lines ``$ command``, each followed by what the command printed.

A transcript is what ``ostrain ranktable make`` collects over SSH and ``--save-facts`` keeps; one can be made at the
terminal, too. Files of a folder stand for commands by their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ostrain.errors import OstrainError
from ostrain.ranktable.document import decoded, read_bytes
from ostrain.spec.document import DocumentError
from ostrain.states import ExitCode

# ``$ `` or ``[root@node ~]# ``; a bare ``#`` begins a comment of hccn.conf.
_PROMPT = re.compile(r"(?:\$|\[?[\w.-]{1,64}@[^\]$#]{0,200}\]?[$#]) ?(?=\S)")
_SUFFIXES = (".txt", ".log", ".conf", ".json")
# Names of files that hold one command's output.
_FILES = {
    "hccn.conf": "cat /etc/hccn.conf",
    "hccl_rootinfo.json": "cat /etc/hccl_rootinfo.json",
    "npu-smi-info.txt": "npu-smi info",
    "npu-smi-list.txt": "npu-smi info -l",
    "npu-smi-map.txt": "npu-smi info -m",
    "hostname.txt": "hostname",
    "addresses.txt": "hostname -I",
}


@dataclass(frozen=True)
class Section:
    """A command, its path cut off its first word, and its output."""

    words: tuple[str, ...]
    output: str

    def option(self, name: str) -> str:
        """The word after ``name``, empty without."""
        for before, after in zip(self.words, self.words[1:], strict=False):
            if before == name:
                return after
        return ""


def sections(text: str) -> Iterator[Section]:
    """The commands of a transcript, in order. What stands before the first one is nobody's."""
    words: tuple[str, ...] = ()
    lines: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n"):
        match = _PROMPT.match(line)
        if match is None:
            lines.append(line)
            continue
        if words:
            yield Section(words, "\n".join(lines))
        words, lines = _words(line[match.end() :]), []
    if words:
        yield Section(words, "\n".join(lines))


def _words(command: str) -> tuple[str, ...]:
    first, *rest = command.split() or [""]
    return (first.rsplit("/", 1)[-1], *rest)


def read_folder(folder: Path) -> dict[str, str]:
    """Node name -> transcript, of a folder with one file or one folder a node, in natural order of names.

    A single file is one node's. Raises OstrainError (exit 2) where there is nothing of the kind.
    """
    entries = [folder] if folder.is_file() else _listed(folder)
    found = {}
    for entry in entries:
        if entry.is_dir():
            text = "\n".join(_as_transcript(path) for path in _listed(entry))
        else:
            text = _as_transcript(entry)
        if text:
            found[entry.name if entry.is_dir() else _stem(entry.name)] = text
    if not found:
        raise OstrainError(
            f"{folder} holds no facts of nodes",
            why="one file a node is looked for (NODE.txt, a transcript, or NODE.conf, its hccn.conf), or one folder",
            next_step="docs/ranktables.md shows such files",
            exit_code=ExitCode.USAGE,
        )
    return found


def _stem(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix}" in _SUFFIXES else name


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=_natural)
    except OSError as error:
        raise OstrainError(
            f"{folder} cannot be read", why=error.strerror or str(error), next_step="name a folder of facts",
            exit_code=ExitCode.USAGE,
        ) from None  # fmt: skip


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """node-2 before node-10."""
    parts = re.split(r"([0-9]{1,18})", path.name)
    return [(0, int(part)) if number % 2 else (1, part) for number, part in enumerate(parts)]


def _as_transcript(path: Path) -> str:
    """A file's part of a transcript; nothing for files of other kinds."""
    if path.suffix not in _SUFFIXES or not path.is_file():
        return ""
    try:
        text = decoded(path.name, read_bytes(path)).text
    except DocumentError as error:
        problem = error.problems[0]
        raise OstrainError(
            f"{path} is no text", where=str(problem.mark), why=problem.message, next_step="save the output as UTF-8",
            exit_code=ExitCode.USAGE,
        ) from None  # fmt: skip
    command = _FILES.get(path.name) or ("cat /etc/hccn.conf" if path.suffix == ".conf" else "")
    return f"$ {command}\n{text}" if command else text
