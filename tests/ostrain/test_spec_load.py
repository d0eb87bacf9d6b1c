"""Jobs, recipes, inventories and overrides: every mistake at its place, in plain words, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.config import TrainConfig
from models.recipe import recipe_names, recipe_task
from ostrain.errors import OstrainError
from ostrain.spec import check_runnable, load_job
from tests.ostrain.spec_helpers import INVENTORY, TRAIN, place, problems, the_problem, write_inventory, write_job

ENV_QUOTE = 'on without quotes is a boolean in YAML: write "on"'


def test_a_job_with_its_recipe_merged(tmp_path: Path) -> None:
    path = write_job(tmp_path, train=TRAIN + "  steps: 7\n  model: {depth: 3}\n")
    loaded = load_job(path)
    train = loaded.job.train
    assert (train.steps, train.model.depth, train.model.in_channels) == (7, 3, 3)
    assert loaded.mark("train", "steps").source.name.endswith("job.yaml")
    assert loaded.mark("train", "model", "hidden_size").source.name.endswith("recipes/quickstart.yaml")
    assert train.recipe == "quickstart" and loaded.job.layout == train.layout


@pytest.mark.parametrize(
    ("text", "row_column_word", "words"),
    [
        ("nodez: 2\n", (4, 1, "nodez"), "unknown key 'nodez'; did you mean 'nodes'?"),
        ("steps: 2\n", (4, 1, "steps"), "did you mean 'train.steps'?"),
        ("nodes: two\n", (4, 8, "two"), "nodes needs a whole number, not 'two'"),
        ("nodes: 1.5\n", (4, 8, "1.5"), "nodes needs a whole number, not 1.5"),
        ("nodes: true\n", (4, 8, "true"), "nodes needs a whole number, not true"),
        ("nodes: '2'\n", (4, 8, "'2'"), "nodes needs a whole number, not '2'"),
        ("nodes: 0\n", (4, 8, "0"), "it has to be at least 1"),
        ("nodes:\n", (4, 1, "nodes"), "nodes needs a whole number, not nothing"),
        ("launcher: msrum\n", (4, 11, "msrum"), "not one of msrun, mpirun, rank_table; did you mean 'msrun'?"),
        ("rank_table: t.json\n", (4, 13, "t.json"), "no table is read with launcher msrun"),
        ("master_port: 80\n", (4, 14, "80"), "at least 1024"),
        ("master_port: any\n", (4, 14, "any"), "needs auto or a whole number"),
        ("layout: [4]\n", (4, 9, "[4]"), "layout needs a mapping, not a list"),
        ("layout: {sq: 4}\n", (4, 10, "sq"), "did you mean 'sp'?"),
        ("layout: {sp: 4}\n", (4, 14, "4"), "sp 4 does not divide the 2 workers (1 node x 2 devices); 1 or 2 would"),
        ("restart: {hang_timeout: 30q}\n", (4, 25, "30q"), "'30q' is not a duration; write 90s, 30m, 1h30m or 2d"),
        ("files: {../x: y}\n", (4, 9, "../x"), "make a name under files/"),
        ("python: bin/python\n", (4, 9, "bin/python"), "has to start with / or ~/"),
        ("env: {A: on}\n", (4, 10, "on"), ENV_QUOTE),
        ("env: {A: 12}\n", (4, 10, "12"), '12 without quotes is a number in YAML: write "12"'),
        ("env: {A: [x]}\n", (4, 10, "[x]"), "A needs text, not a list; write a quoted string"),
        ("env: {A: {expant: x}}\n", (4, 10, "{expant: x}"), '{expand: "$NAME/…"} or {secret: name}'),
        ("env: {A: {secret: x, more: y}}\n", (4, 22, "more"), "unknown key 'more'"),
        ('env: {A: "x\\0y"}\n', (4, 10, '"x\\0y"'), "NUL"),
        ("env: {A-B: x}\n", (4, 7, "A-B"), "make a variable's name"),
        ("env: {UID: x}\n", (4, 7, "UID"), "the shell that starts the workers sets UID itself"),
        ("env: {RANK_ID: x}\n", (4, 7, "RANK_ID"), "names starting with RANK_ belong to the launcher"),
        ("env: {OSTRAIN_RUN: x}\n", (4, 7, "OSTRAIN_RUN"), "belong to the launcher"),
        ("env: {MS_ROLE: x}\n", (4, 7, "MS_ROLE"), "belongs to the launcher"),
        ("cluster: lokal\n", None, "twice"),
    ],
)  # fmt: skip
def test_one_mistake_is_one_problem_at_its_place(
    tmp_path: Path, text: str, row_column_word: tuple[int, int, str] | None, words: str
) -> None:
    problem = the_problem(write_job(tmp_path, text))
    assert words in problem
    if row_column_word is not None:
        assert place(problem) == row_column_word


@pytest.mark.parametrize(
    ("train", "words", "underlined"),
    [
        ("optimizer: {lr: -1}", "lr is -1; it has to be more than 0", "-1"),
        ("optimizer: {lr: 1e-4x}", "lr needs a number, not '1e-4x'", "1e-4x"),
        ("data: {image_size: [64]}", "image_size holds 1 values; at least 2 are needed", "[64]"),
        ("data: {image_size: [64, x]}", "item 2 needs a whole number, not 'x'", "x"),
        ("data: {image_size: [1, 2, 3]}", "image_size holds too much; 2 values at most", "[1, 2, 3]"),
        ("model: {hidden_size: 65}", "not a multiple of num_heads", "{hidden_size: 65}"),
        ("model: {qk_norm: yes please}", "qk_norm needs true or false, not 'yes please'", "yes please"),
        ("mask_ratios: {quarter_hed: 0.1}", "unknown mask 'quarter_hed'", "{quarter_hed: 0.1}"),
        ("max_device_memory: 5XB", "'5XB' is not a size; write 55GB or 512MB", "5XB"),
        ("dtype: fp8", "not one of fp32, fp16, bf16", "fp8"),
        ("recipe: [a]", "recipe needs text, not a list", "[a]"),
    ],
)
def test_mistakes_in_the_training_section(tmp_path: Path, train: str, words: str, underlined: str) -> None:
    text = "train:\n  recipe: quickstart\n" if "recipe" not in train else "train:\n"
    text += f"  {train}\n"
    if "data" not in train:
        text += "  data: {annotations: /a, text_embeddings: /t}\n"
    found = [p for p in problems(write_job(tmp_path, train=text)) if words in p]
    assert len(found) == 1 and place(found[0])[2] == underlined


@pytest.mark.parametrize(
    ("bucket", "words"),
    [
        ("144p: {51: [1.0]}", "51 holds 1 values; at least 2 are needed"),
        ("144p: {51: [[1, 2], 3]}", "item 2 is 2; it has to be at most 1"),
        ("144p: {51: [[1], 3]}", "item 1 holds 1 values; at least 2 are needed"),
        ("144p: {51: [a, 3]}", "item 1 needs a number or a list, not 'a'"),
        ("144p: {51: [1.0, x]}", "item 2 needs a whole number, not 'x'"),
        ("144p: {2s: [1.0, 1]}", "'2s' cannot stand here: a whole number is needed as key"),
        ("144q: {51: [1.0, 1]}", "unknown resolution '144q'; did you mean '144p'?"),
        ("144p: {51: [1.0, null]}", "bucket 144p x 51 frames is used (probability 1) but has no batch size"),
        ("144p: {51: [0.0, 4]}", "no bucket is ever used"),
    ],
)
def test_buckets_give_one_message_each(tmp_path: Path, bucket: str, words: str) -> None:
    train = TRAIN.replace("{annotations", "{image_size: null, bucket_config: {" + bucket + "}, annotations")
    assert words in the_problem(write_job(tmp_path, train=train))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("image_size: null", "says no size of clips"),
        ("resolution: 240p, aspect_ratio: '9:16'", "image_size and resolution both say the size of clips"),
        ("bucket_config: {144p: {1: [1.0, 1]}}", "--set train.data.bucket_config=null"),
        ("image_size: null, resolution: 240p", "resolution needs aspect_ratio beside it"),
        ("image_size: null, resolution: 240, aspect_ratio: 9:16", 'write "240"'),
        ("image_size: null, resolution: 240p, aspect_ratio: 9:99", "unknown aspect ratio '9:99'"),
        ('image_size: null, resolution: "256", aspect_ratio: 3:8', "resolution 256 has no size for 3:8"),
    ],
)
def test_one_way_of_saying_the_size_of_clips(tmp_path: Path, data: str, words: str) -> None:
    train = TRAIN.replace("{annotations", "{" + data + ", annotations")
    assert words in the_problem(write_job(tmp_path, train=train))


def test_autoencoder_and_model_have_to_agree(tmp_path: Path) -> None:
    problem = the_problem(write_job(tmp_path, train=TRAIN + "  model: {in_channels: 4}\n"))
    assert "autoencoder identity makes 3 channels, the model takes 4" in problem and place(problem)[2] == "4"


def test_heads_that_ulysses_cannot_share(tmp_path: Path) -> None:
    head = "name: j\ndevices_per_node: 12\n"
    problem = the_problem(write_job(tmp_path, "layout: {sp: 6}\n", head=head))
    assert "4 attention heads among sp 6" in problem and "1, 2 or 4 would work, or sp_kind dsp" in problem
    assert load_job(write_job(tmp_path, "layout: {sp: 6, sp_kind: dsp}\n", head=head)).job.train.layout.sp == 6


def test_layout_said_twice_has_to_agree_and_beats_the_recipe(tmp_path: Path) -> None:
    path = write_job(tmp_path, "layout: {sp: 2}\n", train=TRAIN + "  layout: {sp: 1}\n")
    problem = the_problem(path)
    assert "layout.sp is 2 and train.layout.sp is 1; say it once" in problem and place(problem)[:2] == (8, 12)
    path = write_job(tmp_path, "layout: {sp: 2}\n", train=TRAIN + "  layout: {sp: 2, zero: 1}\n")
    layout = load_job(path).job.train.layout
    assert (layout.sp, layout.sp_kind, layout.zero) == (2, "ulysses", 1)


def test_all_problems_of_all_files_at_once_and_each_once(tmp_path: Path) -> None:
    write_inventory(tmp_path, INVENTORY + "  - {name: a, host: 192.0.2.2, prot: 1}\n")
    path = write_job(tmp_path, "nodez: 1\n", head="name: j j\ncluster: duo\ndevices_per_node: 9\n")
    found = problems(path, "train.steps=x", "train.log=")
    text = "\n".join(found)
    for words in (
        "a job's name",
        "key 'nodez'",
        "key 'prot'",
        "steps needs a whole number",
        "log needs a mapping, not nothing",
    ):
        assert text.count(words) == 1, words
    assert found == list(dict.fromkeys(found))


def test_checks_between_values_run_beside_wrong_values(tmp_path: Path) -> None:
    found = problems(write_job(tmp_path, "nodez: 1\nlayout: {sp: 3}\n"))
    assert [("unknown key" in p, "sp 3 does not divide" in p) for p in found] == [(True, False), (False, True)]


def test_unknown_recipe_and_missing_keys(tmp_path: Path) -> None:
    problem = problems(write_job(tmp_path, train=TRAIN.replace("quickstart", "quikstart")))[0]
    assert "'quikstart'" in problem and "did you mean" in problem and place(problem)[2] == "quikstart"
    found = problems(write_job(tmp_path, head="nodes: 1\n", train=""))
    assert [key for key in ("name", "devices_per_node", "train") if any(f"'{key}' is missing" in p for p in found)] == [
        "name", "devices_per_node", "train"
    ]  # fmt: skip


def test_a_job_has_one_task_and_a_recipe_for_it(tmp_path: Path) -> None:
    found = problems(write_job(tmp_path, "embed_text: {annotations: a.csv}\n"))
    assert len(found) == 1 and "a job has one task; this one has train and embed_text" in found[0]
    assert place(found[0])[2] == "embed_text"
    found = problems(write_job(tmp_path, train=TRAIN.replace("quickstart", "vae/stage1")))
    assert "recipe vae/stage1 is one for train_vae, not for train; for train: opensora_v1_0/base" in found[0]


def test_a_bad_value_of_a_recipe_is_shown_in_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import models.recipe

    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/mine.yaml").write_text("base: parent\nsteps: 0\nlogg: {}\n", encoding="utf-8")
    (tmp_path / "recipes/parent.yaml").write_text(
        "batch_size: many\nmodel: {in_channels: 3}\nautoencoder: {type: identity}\n"
        "data: {image_size: [8, 8], annotations: /a, text_embeddings: /t}\n", encoding="utf-8"
    )  # fmt: skip
    monkeypatch.setattr(models.recipe, "FOLDER", tmp_path / "recipes")
    found = problems(write_job(tmp_path, train="train: {recipe: mine}\n"))
    heads = {str(Path(p.split(":")[0]).name): p.split(":")[1:3] for p in found}
    assert heads == {"mine.yaml": ["3", "1"], "parent.yaml": ["1", "13"]} and len(found) == 3


def test_free_key_maps_of_a_child_replace_the_parents(tmp_path: Path) -> None:
    train = "train:\n  recipe: opensora_v1_2/stage3\n  mask_ratios: {random: 0.5}\n  data: {bucket_config: {144p: "
    train += "{51: [1.0, 1]}}, annotations: /a, text_embeddings: /t}\n"
    loaded = load_job(write_job(tmp_path, train=train))
    assert loaded.job.train.data.bucket_config == {"144p": {51: (1.0, 1)}}
    assert loaded.job.train.mask_ratios == {"random": 0.5}
    assert loaded.job.train.optimizer.eps == 1e-15


@pytest.mark.parametrize("name", [name for name in recipe_names() if recipe_task(name) == "train"])
def test_every_bundled_recipe_loads(tmp_path: Path, name: str) -> None:
    train = TRAIN.replace("quickstart", name)
    overrides = [] if "base" not in name else ["train.data.image_size=[64,64]"]
    loaded = load_job(
        write_job(tmp_path, train=train, head="name: j\ncluster: atlas-800t-a2\ndevices_per_node: 8\n"), overrides
    )
    assert isinstance(loaded.job.train, TrainConfig)


def test_bundled_jobs_by_name_and_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_job(Path("quickstart")).job.name == "quickstart"
    assert load_job(Path("os12_stage3.yaml")).job.nodes == 2
    with pytest.raises(OstrainError, match="there is no job file os12_stage33; did you mean 'os12_stage3'") as caught:
        load_job(Path("os12_stage33"))
    assert caught.value.exit_code == 2
    with pytest.raises(OstrainError, match="is a folder"):
        load_job(tmp_path)


def test_what_keeps_a_valid_job_from_a_submit(tmp_path: Path) -> None:
    path = write_job(tmp_path, "files: {clips: ./none, here: .}\n")
    loaded = load_job(path)
    assert loaded.sources == {"clips": str(tmp_path / "none"), "here": str(tmp_path)}
    (problem,) = check_runnable(loaded)
    assert place(problem)[2] == "./none" and "none does not exist" in problem
    assert check_runnable(load_job(Path("quickstart"))) == []
    stage3 = check_runnable(load_job(Path("os12_stage3")))
    assert any("set type to identity" in problem for problem in stage3)


def test_names_below_files_have_to_be_pushed(tmp_path: Path) -> None:
    train = TRAIN.replace("/data/train.csv", "files/clip/train.csv")
    problem = the_problem(write_job(tmp_path, "files: {clips: x}\n", train=train))
    assert "files/clip has to be named" in problem and "did you mean 'clips'?" in problem


def test_jit_takes_the_words_that_yaml_reads_as_booleans(tmp_path: Path) -> None:
    assert load_job(write_job(tmp_path), ["train.jit=on"]).job.train.jit == "on"
    assert load_job(write_job(tmp_path), ["train.jit=off"]).job.train.jit == "off"


def test_memory_of_a_device(tmp_path: Path) -> None:
    train = "train:\n  recipe: opensora_v1_2/stage3\n  data: {annotations: /a, text_embeddings: /t, bucket_config: {"
    train += "720p: {102: [1.0, 9], 51: [0.0, 900]}}}\n"
    head = "name: j\ncluster: atlas-800t-a2\ndevices_per_node: 8\n"
    problem = the_problem(write_job(tmp_path, train=train, head=head))
    assert "bucket 720p x 102 frames x batch 9 needs at least" in problem and "allows 59.0 GB" in problem
    largest = int(problem.split("the largest batch that fits is ")[1].split("\n")[0])
    fits = train.replace("[1.0, 9]", f"[1.0, {largest}]")
    assert load_job(write_job(tmp_path, train=fits, head=head))
    too_many = train.replace("[1.0, 9]", f"[1.0, {largest + 1}]")
    assert f"x batch {largest + 1} needs" in the_problem(write_job(tmp_path, train=too_many, head=head))
    assert load_job(write_job(tmp_path, "layout: {sp: 8}\n", train=train, head=head))
    path = write_job(tmp_path, train=train, head=head)
    assert "the model alone needs" in the_problem(path, "train.max_device_memory=10GB")
    assert "not even a batch of 1 fits; raise layout.sp above 1" in the_problem(path, "train.max_device_memory=23GB")
    assert any("is more than the 64.0 GB" in p for p in problems(path, "train.max_device_memory=100GB"))
