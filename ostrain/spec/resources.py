"""Where job files, inventories and recipes are found; the same from a checkout and from an installed wheel."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from ostrain.paths import config_dir

_SUFFIXES = (".yaml", ".yml")


def bundled_jobs() -> Path:
    """The folder of the bundled jobs."""
    return Path(str(files("jobs")))


# Bundled benchmarks lie beside the jobs; this is how their names start.
_BENCH = "bench_"


def job_names() -> list[str]:
    """Names of the bundled jobs."""
    return sorted(path.stem for path in bundled_jobs().glob("*.yaml") if not path.stem.startswith(_BENCH))


def bench_names() -> list[str]:
    """Names of the bundled benchmarks."""
    return sorted(path.stem for path in bundled_jobs().glob(f"{_BENCH}*.yaml"))


def find_job(path: Path) -> Path | None:
    """The file itself; for a bare name without a file of that name, the bundled job."""
    if path.is_file():
        return path
    if len(path.parts) == 1:
        for suffix in ("", *_SUFFIXES):
            bundled = bundled_jobs() / f"{path.name}{suffix}"
            if bundled.is_file() and bundled.suffix in _SUFFIXES:
                return bundled
    return None


def inventory_folders(job: Path) -> list[Path]:
    """Where an inventory's name is looked up, in this order."""
    return [job.parent / "clusters", config_dir() / "clusters", bundled_jobs() / "clusters"]


def find_inventory(name: str, job: Path) -> Path | None:
    """The inventory of a job: a path (beside the job or from here), else a name in the known folders."""
    if "/" in name or name.endswith(_SUFFIXES):
        given = Path(name).expanduser()
        candidates = [given] if given.is_absolute() else [job.parent / given, given]
    else:
        candidates = [folder / f"{name}{suffix}" for folder in inventory_folders(job) for suffix in _SUFFIXES]
    return next((path for path in candidates if path.is_file()), None)


def inventory_names(job: Path) -> list[str]:
    found = {path.stem for folder in inventory_folders(job) for path in folder.glob("*.y*ml")}
    return sorted(found | {"local"})


def shown_path(path: Path) -> str:
    """A path as short as it stays true: relative where it lies below the working directory."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
