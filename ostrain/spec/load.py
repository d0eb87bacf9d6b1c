"""From a job file, its recipe, its inventory and ``--set`` to one validated LoadedJob, or every problem at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.inventory import Inventory, local_inventory
from models.config.tasks import TASKS
from ostrain.errors import OstrainError, SpecError
from ostrain.paths import state_dir
from ostrain.spec.checks import Facts, check_all, inventory_problems, task_problems
from ostrain.spec.document import DocumentError, Mapping, Scalar, find, load_document, value_mark
from ostrain.spec.job import JobSpec
from ostrain.spec.merge import fold_layout, key_places, merge_train
from ostrain.spec.overrides import Override, apply_overrides, parse_overrides
from ostrain.spec.problems import Mark, Problem, did_you_mean, render_all
from ostrain.spec.rank_tables import PlacedTable, TableWanted, placed_table, table_problems
from ostrain.spec.recipes import load_recipe
from ostrain.spec.resources import find_inventory, find_job, inventory_folders, inventory_names, job_names, shown_path
from ostrain.spec.translate import validate, validate_what_stands

NEXT = "correct the places above; docs/jobs.md explains every key, `ostrain schema` checks while you type"


@dataclass(frozen=True)
class LoadedJob:
    """A valid job. ``tree`` holds every value (recipe, job and overrides merged) with the place it came from.

    rank_table: for the launcher that reads one.
    """

    path: Path
    job: JobSpec
    inventory: Inventory
    tree: Mapping
    overrides: tuple[str, ...] = ()
    rank_table: PlacedTable | None = None

    def mark(self, *path: str) -> Mark:
        """Where the value at ``path`` was written."""
        return value_mark(self.tree, path)

    @property
    def sources(self) -> dict[str, str]:
        """``files:`` as absolute paths on this machine."""
        folder = self.path.resolve().parent
        return {name: str(folder / Path(path).expanduser()) for name, path in self.job.files.items()}


def load_job(path: Path, overrides: Sequence[str] = ()) -> LoadedJob:
    """Load, merge and check a job: a file, or the bare name of a bundled one (``quickstart``).

    Raises SpecError with every problem found in job, recipe, inventory and overrides; OstrainError without a file.
    """
    file = _job_file(Path(path))
    try:
        own = load_document(file, shown_path(file))
    except DocumentError as error:
        raise SpecError(render_all(error.problems), next_step=NEXT) from None
    if "matrix" in own.items:
        raise OstrainError(
            f"{path} is a benchmark of several jobs, not a job", next_step=f"ostrain bench {path}", exit_code=2
        )
    parsed, problems = parse_overrides(overrides)
    loaded, found = check_tree(file, own, parsed, tuple(overrides))
    problems += found
    if problems or loaded is None:
        raise SpecError(render_all(problems), next_step=NEXT)
    return loaded


def check_tree(
    file: Path, own: Mapping, overrides: Sequence[Override] = (), texts: tuple[str, ...] = ()
) -> tuple[LoadedJob | None, list[Problem]]:
    """The job that a tree holds, with every problem in it. file: where relative paths of the job start."""
    tree, problems = _merged(own, overrides)
    found = task_problems(tree)
    problems += found
    if found:
        return None, problems + validate(JobSpec, tree)[1]
    job, found, left_out = validate_what_stands(JobSpec, tree)
    problems += found
    inventory, inventory_tree, found = _inventory(tree, file)
    problems += found
    if job is not None:
        problems += check_all(Facts(job, tree, inventory, inventory_tree, frozenset(left_out)))
    if problems or job is None or inventory is None:
        return None, problems
    table, problems = _rank_table(job, inventory, tree, inventory_tree, file)
    return (None if problems else LoadedJob(file, job, inventory, tree, texts, table)), problems


def _rank_table(
    job: JobSpec, inventory: Inventory, tree: Mapping, inventory_tree: Mapping | None, file: Path
) -> tuple[PlacedTable | None, list[Problem]]:
    path = file.resolve().parent / Path(job.rank_table).expanduser() if job.rank_table is not None else None
    launcher, table = value_mark(tree, ("launcher",)), value_mark(tree, ("rank_table",))
    facts = value_mark(inventory_tree, ("facts",)) if inventory_tree is not None else launcher
    wanted = TableWanted(job, inventory, launcher, table, facts, path)
    problems = table_problems(wanted)
    return (None, problems) if problems or job.launcher != "rank_table" else placed_table(wanted)


def _job_file(path: Path) -> Path:
    file = find_job(path)
    if file is not None:
        return file
    if path.is_dir():
        raise OstrainError(f"{path} is a folder, not a job file", next_step=f"name a file: {path}/….yaml", exit_code=2)
    names = job_names()
    raise OstrainError(
        f"there is no job file {path}{did_you_mean(path.stem, names)}",
        why=f"bundled jobs, usable by name: {', '.join(names)}",
        next_step="give the path of a YAML file or the name of a bundled job",
        exit_code=2,
    )


def _merged(own: Mapping, overrides: Sequence[Override]) -> tuple[Mapping, list[Problem]]:
    """Recipe, job and overrides as one tree; ``layout`` is in the task's configuration as well."""
    overridden, _ = apply_overrides(own, overrides)
    tree, problems = own, []
    for task in TASKS:
        recipe, found = load_recipe(find(overridden, (task, "recipe")), task)
        problems += found
        if recipe is not None:
            tree = _on_recipe(tree, task, recipe)
    tree, found = apply_overrides(tree, overrides)
    problems += found
    for task in TASKS:
        tree, found = fold_layout(tree, task, key_places(overridden, (task, "layout")))
        problems += found
    return tree, problems


def _on_recipe(tree: Mapping, task: str, recipe: Mapping) -> Mapping:
    own = tree.items.get(task)
    if isinstance(own, Mapping):
        return Mapping({**tree.items, task: merge_train(recipe, own)}, tree.mark, tree.key_marks)
    if own is not None:
        return tree
    return Mapping({**tree.items, task: recipe}, tree.mark, {**tree.key_marks, task: recipe.mark})


def _inventory(tree: Mapping, job_file: Path) -> tuple[Inventory | None, Mapping | None, list[Problem]]:
    node = tree.items.get("cluster")
    if node is None:
        name, mark = "local", tree.mark
    elif isinstance(node, Scalar) and isinstance(node.value, str) and node.value:
        name, mark = node.value, node.mark
    else:
        return None, None, []
    if name == "local":
        return local_inventory(str(state_dir()), sys.executable), None, []
    file = find_inventory(name, job_file)
    if file is None:
        folders = ", ".join(shown_path(folder) for folder in inventory_folders(job_file))
        message = f"there is no inventory {name!r}{did_you_mean(name, inventory_names(job_file))}; looked in {folders}"
        return None, None, [Problem(mark, message)]
    try:
        document = load_document(file, shown_path(file))
    except DocumentError as error:
        return None, None, error.problems
    except OSError as error:
        return None, None, [Problem(mark, f"{file} cannot be read: {error.strerror}")]
    inventory, problems, _ = validate(Inventory, document)
    if inventory is not None:
        problems = inventory_problems(inventory, document)
        if inventory.facts is not None:
            folder = file.resolve().parent / Path(inventory.facts).expanduser()
            inventory = inventory.model_copy(update={"facts": str(folder)})
        inventory = inventory.found_in(file)
    return inventory, document, problems
