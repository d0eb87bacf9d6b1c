"""Where the files that belong to a clip lie: its embeddings and latents, below a folder, by the clip's own path.

Imports nothing heavy: the command line looks for them, too.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

RESOLUTION_FOLDERS = "latent_*x*"


def npz_name(video: str) -> str:
    """``folder/clip.npz`` of ``folder/clip.mp4``. ValueError for a path that leads out of the folder."""
    relative = PurePosixPath(video.lstrip("/"))
    if ".." in relative.parts or not relative.name:
        raise ValueError(f"{video!r} leads out of the folder")
    return str(relative.with_suffix(".npz"))


def find_npz(folder: Path, video: str) -> Path | None:
    """The file of a clip: ``<video without suffix>.npz``, else ``<video>.npz``, below ``folder``."""
    relative = Path(video.lstrip("/"))
    for candidate in (folder / relative.with_suffix(".npz"), folder / relative.parent / f"{relative.name}.npz"):
        if candidate.is_file():
            return candidate
    return None


def latent_folders(folder: Path) -> list[Path]:
    """Folders ``latent_<height>x<width>`` below ``folder``, by name; the folder itself where there is none."""
    found = sorted(path for path in folder.glob(RESOLUTION_FOLDERS) if path.is_dir())
    return found or [folder]


def find_latents(folder: Path, video: str) -> list[Path]:
    """The files of a clip's latents, at most one a resolution."""
    found = [find_npz(place, video) for place in latent_folders(folder)]
    return [path for path in found if path is not None]
