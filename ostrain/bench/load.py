"""From a benchmark file to its cases, each a job that is checked and compiled; or every problem at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.config import TrainConfig
from ostrain.bench.merge import BENCH_KEYS, ENTRY_KEYS, lay_over, located, marks_of, with_values, without
from ostrain.bench.spec import BenchSpec
from ostrain.compiler import compile_plan
from ostrain.errors import OstrainError, SpecError
from ostrain.plan import LaunchPlan
from ostrain.spec.checks import runnable_problems
from ostrain.spec.document import DocumentError, Mapping, find, key_mark, load_document, plain, value_mark
from ostrain.spec.load import LoadedJob, check_tree
from ostrain.spec.overrides import apply_overrides, parse_overrides
from ostrain.spec.problems import Problem, did_you_mean, render_all
from ostrain.spec.resources import bench_names, find_job, job_names, shown_path
from ostrain.spec.translate import validate_what_stands

NEXT = "correct the places above; docs/bench.md explains every key of a benchmark, docs/jobs.md those of a job"


@dataclass(frozen=True)
class Case:
    """An entry ready to run. samples: of an optimizer step, None where buckets decide; config: hash of what is
    measured (job, inventory, steps), so that only equal things are compared over time."""

    label: str
    plan: LaunchPlan
    config: str
    samples: int | None
    published: float | None


@dataclass(frozen=True)
class Bench:
    """A checked benchmark; ``cases`` are those that were asked for."""

    path: Path
    spec: BenchSpec
    baseline: str
    cases: tuple[Case, ...]


def load_bench(path: Path, overrides: Sequence[str] = (), only: Sequence[str] = (), *, runnable: bool = True) -> Bench:
    """Load and check a benchmark: a file, or the bare name of a bundled one (``bench_layouts``).

    ``overrides`` start at the benchmark's top (``steps=20``, ``job.nodes=2``); ``only``: labels, none for all;
    ``runnable``: also look whether it could start here and now (files exist, the payload can do it).
    Raises SpecError with every problem of every entry; OstrainError without a file or for unknown labels.
    """
    file = _bench_file(path)
    parsed, problems = parse_overrides(overrides)
    try:
        own = load_document(file, shown_path(file))
    except DocumentError as error:
        raise SpecError(render_all(error.problems), what=_count(error.problems), next_step=NEXT) from None
    if "matrix" not in own.items and "train" in own.items:
        raise OstrainError(f"{path} is a job, not a benchmark", next_step=f"ostrain submit {path}", exit_code=2)
    tree, found = apply_overrides(own, parsed)
    problems += found
    spec, found, _ = validate_what_stands(BenchSpec, tree)
    problems += found
    cases: list[Case] = []
    if spec is not None:
        _known(spec, only)
        problems += _labels(spec, tree)
        base_file, base, found = _base(spec, tree, file)
        problems += found
        if base is not None:
            cases, found = _Cases(spec, tree, file, base_file, base, frozenset(only), runnable).all()
            problems += found
    if problems or spec is None:
        raise SpecError(render_all(problems), what=_count(problems), next_step=NEXT)
    baseline = spec.baseline or spec.matrix[0].label
    return Bench(file, spec, baseline, tuple(cases))


def _bench_file(path: Path) -> Path:
    file = find_job(path)
    if file is not None:
        return file
    names = bench_names()
    raise OstrainError(
        f"there is no benchmark file {path}{did_you_mean(path.stem, names)}",
        why=f"bundled benchmarks, usable by name: {', '.join(names)}",
        next_step="give the path of a YAML file or the name of a bundled benchmark",
        exit_code=2,
    )


def _count(problems: Sequence[Problem]) -> str:
    count = len(set(problems))
    return f"{count} problem{'s' if count != 1 else ''} in the benchmark; nothing was started"


def _known(spec: BenchSpec, only: Sequence[str]) -> None:
    """Raises OstrainError for a label that no entry has."""
    labels = [entry.label for entry in spec.matrix]
    for label in only:
        if label not in labels:
            raise OstrainError(
                f"there is no entry {label!r}{did_you_mean(label, labels)}",
                why=f"its entries are {', '.join(labels)}",
                exit_code=2,
            )


def _labels(spec: BenchSpec, tree: Mapping) -> list[Problem]:
    found = []
    labels = [entry.label for entry in spec.matrix]
    for index, label in enumerate(labels):
        if label in labels[:index]:
            found.append(Problem(value_mark(tree, ("matrix", str(index), "label")), f"label {label!r} stands twice"))
    if spec.baseline is not None and spec.baseline not in labels:
        message = f"no entry is labelled {spec.baseline!r}{did_you_mean(spec.baseline, labels)}"
        found.append(Problem(value_mark(tree, ("baseline",)), message))
    if spec.warmup >= spec.steps:
        message = f"warmup {spec.warmup} leaves none of the {spec.steps} steps to count"
        found.append(Problem(value_mark(tree, ("warmup" if find(tree, ("warmup",)) else "steps",)), message))
    return found


def _base(spec: BenchSpec, tree: Mapping, bench: Path) -> tuple[Path, Mapping | None, list[Problem]]:
    """The file and the tree of the job that all entries change; ``job:`` is laid over it already."""
    own = find(tree, ("job",))
    layer = located(own, bench) if isinstance(own, Mapping) else None
    if spec.base is None:
        if layer is None:
            return bench, None, [Problem(tree.mark, "has no job: name one under `base`, or write it under `job`")]
        return bench, layer, []
    mark = value_mark(tree, ("base",))
    beside = bench.parent / Path(spec.base).expanduser()
    file = beside if beside.is_file() else find_job(Path(spec.base).expanduser())
    if file is None:
        known = f"bundled jobs are {', '.join(job_names())}"
        return bench, None, [Problem(mark, f"there is no job {spec.base!r}{did_you_mean(spec.base, job_names())}; "
                                           f"{known}")]  # fmt: skip
    try:
        base = load_document(file, shown_path(file))
    except DocumentError as error:
        return file, None, error.problems
    except OSError as error:
        return file, None, [Problem(mark, f"{file} cannot be read: {error.strerror}")]
    if "matrix" in base.items:
        return file, None, [Problem(mark, f"{spec.base} is a benchmark itself; a job is needed")]
    return file, lay_over(base, layer) if layer is not None else base, []


@dataclass(frozen=True)
class _Cases:
    """Makes the cases of a benchmark."""

    spec: BenchSpec
    tree: Mapping
    file: Path
    base_file: Path
    base: Mapping
    only: frozenset[str]
    runnable: bool

    def all(self) -> tuple[list[Case], list[Problem]]:
        cases: list[Case] = []
        labels: dict[Problem, list[str]] = {}
        chosen = [index for index, entry in enumerate(self.spec.matrix) if not self.only or entry.label in self.only]
        for index in chosen:
            case, found = self.case(index)
            for problem in found:
                labels.setdefault(problem, []).append(self.spec.matrix[index].label)
            if case is not None:
                cases.append(case)
        return cases, self.named(labels, len(chosen))

    def named(self, labels: dict[Problem, list[str]], count: int) -> list[Problem]:
        """A problem that lies outside an entry says which entries have it, unless all ``count`` do."""
        entries = find(self.tree, ("matrix",))
        assert entries is not None
        inside = marks_of(entries)
        named = []
        for problem, having in labels.items():
            if problem.mark not in inside and len(having) < count:
                word = "entry" if len(having) == 1 else "entries"
                problem = Problem(problem.mark, f"in {word} {', '.join(having)}: {problem.message}")
            named.append(problem)
        return named

    def case(self, index: int) -> tuple[Case | None, list[Problem]]:
        entry = self.spec.matrix[index]
        node = find(self.tree, ("matrix", str(index)))
        assert isinstance(node, Mapping)
        problems = self.refused(node)
        own = self.job_tree(entry.label, node)
        loaded, found = check_tree(self.base_file, own)
        problems += found
        if loaded is not None and loaded.job.train is None:
            return None, [*problems, Problem(node.mark, "a benchmark measures training, and this job trains nothing")]
        if loaded is not None and self.spec.global_batch is not None:
            values, found = self.batch(loaded, node, self.spec.global_batch)
            problems += found
            if values:
                loaded, found = check_tree(self.base_file, with_values(own, values, node.mark))
                problems += found
        if loaded is not None and self.runnable:
            problems += runnable_problems(loaded)
        if loaded is None or problems:
            return None, problems
        plan = compile_plan(loaded)
        samples = _samples(loaded)
        return Case(entry.label, plan, config_hash(loaded, plan, self.spec), samples, entry.published), []

    def job_tree(self, label: str, node: Mapping) -> Mapping:
        """The entry's job. A benchmark writes one checkpoint, at the end, unless the entry says otherwise."""
        quiet = {
            "train.checkpoint.every": self.spec.steps,
            "train.checkpoint.every_epochs": None,
            "train.log.tensorboard": False,
            "restart.max": 0,
        }
        tree = with_values(self.base, quiet, self.base.mark)
        tree = lay_over(tree, located(without(node, *ENTRY_KEYS, *BENCH_KEYS), self.file))
        forced = {
            "name": f"{self.spec.name}-{label}",
            "train.steps": self.spec.steps,
            "train.epochs": None,
            "train.log.every": 1,
        }
        return with_values(tree, forced, node.mark)

    def refused(self, node: Mapping) -> list[Problem]:
        """Keys that an entry cannot have because the benchmark decides them."""
        ours = {(key,): "the benchmark says this once, for every entry" for key in BENCH_KEYS}
        whose = ours | {
            ("name",): "an entry's job is named after its label",
            ("train", "steps"): "the benchmark's own `steps` says how many, for every entry",
            ("train", "log", "every"): "a benchmark looks at every step",
        }
        return [Problem(key_mark(node, path), why) for path, why in whose.items() if find(node, path) is not None]

    def batch(self, loaded: LoadedJob, node: Mapping, wanted: int) -> tuple[dict[str, Any], list[Problem]]:
        """Batch size and accumulation that make ``wanted`` samples a step.

        The batch size follows from the accumulation, or the other way round where the entry itself says the size.
        """
        train, replicas = _train(loaded), _replicas(loaded)
        place = value_mark(self.tree, ("global_batch",))
        if train.data.bucket_config is not None:
            return {}, [Problem(place, "buckets have batch sizes of their own; remove global_batch or set image_size")]
        size_key, count_key = ("train", "batch_size"), ("train", "gradient_accumulation_steps")
        size, count = train.batch_size, train.gradient_accumulation_steps
        if find(node, size_key) is None:
            key, fixed, text = size_key, count, f"accumulation {count}"
        elif find(node, count_key) is None:
            key, fixed, text = count_key, size, f"batch_size {size}"
        elif size * count * replicas == wanted:
            return {}, []
        else:
            made = size * count * replicas
            message = f"makes {made} samples a step ({replicas} replicas x {size} x {count}), not {wanted}"
            return {}, [Problem(value_mark(node, size_key), message)]
        if wanted % (fixed * replicas):
            message = (
                f"a global batch of {wanted} cannot be shared by {replicas} replicas with {text}; "
                f"multiples of {fixed * replicas} would work"
            )
            return {}, [Problem(value_mark(node, ("label",)), message)]
        return {".".join(key): wanted // (fixed * replicas)}, []


def _train(loaded: LoadedJob) -> TrainConfig:
    assert loaded.job.train is not None, "other tasks were refused before"
    return loaded.job.train


def _replicas(loaded: LoadedJob) -> int:
    """Groups of workers that see different samples."""
    return loaded.job.nodes * loaded.job.devices_per_node // _train(loaded).layout.sp


def _samples(loaded: LoadedJob) -> int | None:
    train = _train(loaded)
    if train.data.bucket_config is not None:
        return None
    return train.batch_size * train.gradient_accumulation_steps * _replicas(loaded)


def config_hash(loaded: LoadedJob, plan: LaunchPlan, spec: BenchSpec) -> str:
    """What is measured, as a short hash: what the job says (not what it leaves to defaults, which may grow), on which
    machines, and which steps count."""
    said = {key: value for key, value in plain(loaded.tree).items() if key not in ("name", "cluster", "python")}
    told = {
        "job": said,
        "backend": plan.backend,
        "device": plan.device,
        "nodes": [(node.name, node.access.host, node.devices) for node in plan.nodes],
        "env": [node.env for node in loaded.inventory.resolved()[: len(plan.nodes)]],
        "steps": [spec.warmup, spec.steps],
    }  # fmt: skip
    text = json.dumps(told, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
