"""Benchmark files: merged, checked at their places, all problems at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ostrain.bench.load import Bench, load_bench
from ostrain.errors import OstrainError, SpecError
from ostrain.spec.resources import bench_names
from tests.ostrain.bench_helpers import HEAD, JOB, write_bench
from tests.ostrain.spec_helpers import write_inventory


def train(bench: Bench, label: str) -> dict[str, object]:
    case = next(case for case in bench.cases if case.label == label)
    text = next(file.text for file in case.plan.nodes[0].files if file.path == "train.yaml")
    return dict(yaml.safe_load(text))


def problems(path: Path, *overrides: str, only: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load_bench(path, overrides, only)
    return caught.value.problems


def the_problem(path: Path, *overrides: str) -> str:
    found = problems(path, *overrides)
    assert len(found) == 1, "\n\n".join(found)
    return found[0]


def test_entries_are_laid_over_the_job(tmp_path: Path) -> None:
    matrix = "matrix:\n  - {label: one, devices_per_node: 1}\n  - {label: two, train: {seed: 7, model: {depth: 3}}}\n"
    bench = load_bench(write_bench(tmp_path, matrix=matrix))
    assert [(case.label, case.plan.name, case.plan.world) for case in bench.cases] == [
        ("one", "trial-one", 1),
        ("two", "trial-two", 2),
    ]
    assert bench.baseline == "one"
    first, second = train(bench, "one"), train(bench, "two")
    assert (first["seed"], second["seed"], second["model"]["depth"]) == (42, 7, 3)  # type: ignore[index]
    assert first["model"]["hidden_size"] == second["model"]["hidden_size"] == 96  # type: ignore[index]


def test_a_run_has_the_benchmarks_steps_and_writes_one_checkpoint(tmp_path: Path) -> None:
    matrix = "matrix:\n  - {label: one}\n  - {label: saving, train: {checkpoint: {every: 2}}}\n"
    bench = load_bench(write_bench(tmp_path, matrix=matrix), ["steps=9"])
    assert [case.plan.steps for case in bench.cases] == [9, 9]
    one, saving = train(bench, "one"), train(bench, "saving")
    assert one["checkpoint"]["every"] == 9  # type: ignore[index]
    assert saving["checkpoint"]["every"] == 2  # type: ignore[index]
    assert one["log"] == {"every": 1, "tensorboard": False}


def test_a_layout_replaces_the_jobs_whole_one(tmp_path: Path) -> None:
    job = JOB.replace("devices_per_node: 2", "devices_per_node: 4\n  layout: {sp: 2, sp_kind: dsp, zero: 1}")
    matrix = "matrix:\n  - {label: same}\n  - {label: other, layout: {zero: 3}}\n"
    bench = load_bench(write_bench(tmp_path, job=job, matrix=matrix), runnable=False)
    layouts = [(case.plan.layout["sp"], case.plan.layout["zero"]) for case in bench.cases]
    assert layouts == [(2, 1), (1, 3)]


def test_a_base_job_keeps_its_files_and_the_benchmark_adds_its_own(tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    job = "base: quickstart\njob:\n  files: {words: words}\n"
    bench = load_bench(write_bench(tmp_path, job=job))
    sources = bench.cases[0].plan.sources
    assert Path(sources["clips"]).name == "quickstart" and Path(sources["clips"]).is_dir()
    assert sources["words"] == str(tmp_path / "words")


def test_an_inventory_beside_the_benchmark_is_found_whatever_the_base(tmp_path: Path) -> None:
    write_inventory(tmp_path)
    bench = load_bench(write_bench(tmp_path, job="base: quickstart\njob: {cluster: duo, nodes: 2}\n"), runnable=False)
    assert [node.name for node in bench.cases[1].plan.nodes] == ["a", "b"]


@pytest.mark.parametrize(
    ("entry", "batch", "accumulation"),
    [
        ("{label: x, devices_per_node: 1}", 8, 1),
        ("{label: x}", 4, 1),
        ("{label: x, train: {gradient_accumulation_steps: 2}}", 2, 2),
        ("{label: x, train: {batch_size: 1}}", 1, 4),
        ("{label: x, train: {batch_size: 2, gradient_accumulation_steps: 2}}", 2, 2),
        ("{label: x, layout: {sp: 2}}", 8, 1),
    ],
)
def test_the_global_batch_is_equal_in_every_entry(tmp_path: Path, entry: str, batch: int, accumulation: int) -> None:
    path = write_bench(tmp_path, head=HEAD + "global_batch: 8\n", matrix=f"matrix:\n  - {entry}\n")
    bench = load_bench(path, runnable=False)
    told = train(bench, "x")
    assert (told["batch_size"], told["gradient_accumulation_steps"], bench.cases[0].samples) == (batch, accumulation, 8)


def test_a_global_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    path = write_bench(tmp_path, head=HEAD + "global_batch: 3\n")
    text = the_problem(path)
    assert "label: two" in text
    assert "multiples of 2 would work" in text
    entry = "matrix:\n  - {label: x, train: {batch_size: 2, gradient_accumulation_steps: 2}}\n"
    text = the_problem(write_bench(tmp_path, head=HEAD + "global_batch: 4\n", matrix=entry))
    assert "makes 8 samples a step" in text


def test_every_problem_is_told_at_once_and_where_it_is(tmp_path: Path) -> None:
    matrix = """matrix:
  - {label: a, layout: {sp: 3}}
  - {label: a, train: {modl: {depth: 1}, steps: 4}}
  - {label: c, steps: 3}
"""
    found = problems(write_bench(tmp_path, head=HEAD + "baseline: b\n", matrix=matrix))
    text = "\n".join(found)
    for said in (
        "sp 3 does not divide the 2 workers", "label 'a' stands twice", "unknown key 'modl'; did you mean 'model'?",
        "the benchmark's own `steps`", "says this once", "no entry is labelled 'b'",
    ):  # fmt: skip
        assert said in text
    assert len(found) == 6
    assert "trial.yaml:11:29: sp 3" in text


def test_a_problem_outside_the_entries_names_those_that_have_it(tmp_path: Path) -> None:
    path = write_bench(tmp_path)
    assert "in entry two: 2 nodes" in the_problem(path, "job.nodes=2", "matrix.0.nodes=1")
    assert the_problem(path, "job.nodes=2").startswith("--set job.nodes=2: 2 nodes")
    assert [case.label for case in load_bench(path, ["job.nodes=2", "matrix.0.nodes=1"], ["one"]).cases] == ["one"]


def test_unknown_labels_files_and_kinds_are_told(tmp_path: Path) -> None:
    path = write_bench(tmp_path)
    with pytest.raises(OstrainError, match="no entry 'tow'; did you mean 'two'"):
        load_bench(path, (), ["tow"])
    with pytest.raises(OstrainError, match="no benchmark file bench_layout; did you mean 'bench_layouts'"):
        load_bench(Path("bench_layout"))
    with pytest.raises(OstrainError, match="is a job, not a benchmark"):
        load_bench(Path("quickstart"))
    assert "did you mean 'quickstart'" in the_problem(write_bench(tmp_path, job="base: quikstart\n"))
    assert "has no job" in the_problem(write_bench(tmp_path, job=""))
    assert "is a benchmark itself" in the_problem(write_bench(tmp_path, job="base: bench_layouts\n"))


def test_no_step_left_to_count(tmp_path: Path) -> None:
    assert "warmup 6 leaves none of the 6 steps" in the_problem(write_bench(tmp_path), "warmup=6")


def test_buckets_have_batch_sizes_of_their_own(tmp_path: Path) -> None:
    buckets = "train.data={image_size: null, bucket_config: {144p: {4: [1.0, 2]}}, annotations: a, text_embeddings: t}"
    path = write_bench(tmp_path)
    assert load_bench(path, [f"job.{buckets}"]).cases[0].samples is None
    assert "buckets have batch sizes of their own" in the_problem(path, f"job.{buckets}", "global_batch=4")


def test_the_configuration_hash_tells_what_is_measured(tmp_path: Path) -> None:
    path = write_bench(tmp_path)

    def hashes(*overrides: str) -> list[str]:
        return [case.config for case in load_bench(path, overrides).cases]

    first = hashes()
    assert len(set(first)) == 2
    assert hashes("repeat=3", "timeout=1h", "name=other", "job.python=/opt/py") == first
    assert not set(hashes("steps=7")) & set(first)
    assert hashes("matrix.1.train.seed=1")[0] == first[0] and hashes("matrix.1.train.seed=1")[1] != first[1]


@pytest.mark.parametrize("name", bench_names())
def test_bundled_benchmarks_are_legal(name: str) -> None:
    bench = load_bench(Path(name), runnable=False)
    assert len(bench.cases) == len(bench.spec.matrix) >= 3


def test_the_published_tables_are_ready_for_hardware() -> None:
    told = {}
    for name in ("bench_os12_static", "bench_os12_dynamic", "bench_os12_sequence"):
        for case in load_bench(Path(name), runnable=False).cases:
            if case.published:
                told[case.label] = (case.published, case.plan.world, case.plan.layout["sp"], case.plan.layout["zero"])
    assert told == {
        "dp": (11.24, 8, 1, 0),
        "stage1": (13.17, 8, 1, 0),
        "stage2": (26.04, 8, 1, 0),
        "stage3": (27.83, 8, 1, 0),
        "ulysses": (48.30, 4, 4, 2),
        "dsp": (47.00, 4, 4, 2),
    }
