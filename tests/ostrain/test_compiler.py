"""The compiler: what a plan holds, and that launch files do under a real bash what they say."""

from __future__ import annotations

import json
import os
import string
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from models.config import TrainConfig
from ostrain.compiler import compile_plan
from ostrain.environment import _BASH_OWNED, name_problem
from ostrain.plan import LaunchPlan, NodePlan
from ostrain.spec import load_job
from ostrain.templating import Templates, comment, expand, name, path, sh
from tests.ostrain.spec_helpers import INVENTORY, TRAIN, compiled, write_inventory, write_job

HEAD = "name: j\ncluster: duo\nnodes: 2\ndevices_per_node: 8\n"
HOSTILE = {
    "SPACES": "  two  words ",
    "QUOTES": """it's "so" `so`""",
    "SUBSTITUTION": "$(touch pwned) `touch pwned` ${HOME} $HOME",
    "NEWLINES": "a\nb\r\n\n",
    "UNICODE": "grüße 你好 🙂 e\u0301 \u202e",
    "DASHES": "--help -n",
    "GLOBS": "* ? [a-z] {1..3} ~",
    "BANG": "!! !$ ^a^b",
    "BACKSLASHES": "\\n \\ \\\\",
    "EMPTY": "",
    "CONTROL": "\x01\x1b[31m\x7f\t",
    "SEMI": "; rm -rf x & | > y",
    "TILDE": "~/x:~root",
    "HASH": "# no comment",
    "EQUALS": "=a=b",
    "PERCENT": "%s %n",
    "script": "x",
    "python": "x y",
    "cores": "3",
}
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
FAKE_MSRUN = """#!{python}
import json, os, sys
with open(os.environ["OSTRAIN_RUN_DIR"] + "/seen.json", "w") as out:
    json.dump({{"argv": sys.argv[1:], "cwd": os.getcwd(),
               "environ": {{os.fsdecode(k): os.fsdecode(v) for k, v in os.environb.items()}}}}, out)
"""


def bash(script: str, *args: str, env: dict[str, str] | None = None) -> bytes:
    done = subprocess.run(
        ["bash", "-c", script, "bash", *args], capture_output=True, timeout=30, check=True, env=env, cwd="/"
    )
    return done.stdout


class Node:
    """A run directory, and a Python folder whose msrun only tells what it was given."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.run_dir = folder / "py the 1st/bin", folder / "run dir"
        self.bin.mkdir(parents=True)
        self.run_dir.mkdir()
        (self.bin / "msrun").write_text(FAKE_MSRUN.format(python=sys.executable), encoding="utf-8")
        (self.bin / "msrun").chmod(0o755)
        (self.bin / "python").symlink_to(sys.executable)

    @property
    def python(self) -> str:
        return str(self.bin / "python")

    def stage(self, node: NodePlan) -> None:
        for file in node.files:
            (self.run_dir / file.path).write_text(file.text, encoding="utf-8")
            (self.run_dir / file.path).chmod(file.mode)

    def launch(self, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        base = {"PATH": "/usr/bin:/bin", "HOME": "/home/me", "OSTRAIN_BUNDLE": "/b", "OSTRAIN_AGENT": "/a.py", **env}
        done = subprocess.run(
            ["bash", str(self.run_dir / "launch.sh")], env=base, capture_output=True, text=True, timeout=30, cwd="/"
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def seen(self, **env: str) -> dict[str, object]:
        self.launch(**env)
        return dict(json.loads((self.run_dir / "seen.json").read_text(encoding="utf-8")))


def local_plan(tmp_path: Path, text: str = "", python: str = "/usr/bin/python3") -> LaunchPlan:
    return compiled(write_job(tmp_path, text + f"python: {json.dumps(python)}\n"))[1]


def test_plan_of_two_nodes(tmp_path: Path) -> None:
    write_inventory(
        tmp_path, INVENTORY.replace("host: 192.0.2.2", "host: bee, address: '[2001:db8::2]', user: u, port: 22")
    )
    text = "layout: {sp: 4, zero: 2}\nmaster_port: 9000\nfiles: {clips: c}\nenv: {T: {secret: tok}}\n"
    _, plan = compiled(write_job(tmp_path, text, head=HEAD))
    first, second = plan.nodes
    assert (plan.world, plan.layout["dp"], plan.master_address, plan.master_port) == (16, 4, "192.0.2.1", 9000)
    assert (first.ranks, second.ranks) == (tuple(range(8)), tuple(range(8, 16)))
    assert (second.address, second.access.host, second.access.user, second.access.port) == (
        "2001:db8::2",
        "bee",
        "u",
        22,
    )
    assert plan.secrets == {"T": "tok"} and plan.sources == {"clips": str(tmp_path / "c")}
    assert first.command == ("bash", "launch.sh")
    assert [(file.path, file.mode) for file in first.files] == [
        ("launch.sh", 0o755), ("env.sh", 0o600), ("train.yaml", 0o644)
    ]  # fmt: skip
    assert plan.checks["devices"] == list(range(8)) and "msrun" in plan.checks["programs"]
    assert LaunchPlan.from_json(plan.to_json()) == plan
    assert compile_plan(load_job(tmp_path / "job.yaml")) == plan


def test_train_yaml_holds_everything_and_reads_back(tmp_path: Path) -> None:
    loaded, plan = compiled(
        write_job(tmp_path, "layout: {zero: 1}\n", train=TRAIN + "  init_from: 'a: \"b\" \u4f60'\n")
    )
    text = next(file.text for file in plan.nodes[0].files if file.path == "train.yaml")
    read = TrainConfig.model_validate(yaml.safe_load(text))
    assert read == loaded.job.train.model_copy(update={"recipe": ""})
    assert list(yaml.safe_load(text)) == list(TrainConfig.model_fields)


@pytest.mark.parametrize("bad", ["\0", "a\0b"])
def test_filters_refuse_nul(bad: str) -> None:
    for quoting in (sh, expand, path):
        with pytest.raises(ValueError, match="NUL"):
            quoting(bad)


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=20))
def test_any_text_arrives_byte_for_byte(values: list[str]) -> None:
    script = "printf '%s\\0' " + " ".join(sh(value) for value in values)
    assert bash(script).split(b"\0")[:-1] == [value.encode() for value in values]


def expected(value: str, variables: dict[str, str]) -> str:
    """What ``expand`` means, said in another way: read letter by letter."""
    letters = string.ascii_letters + string.digits + "_"
    out, at = "", 0
    while at < len(value):
        braces = value[at : at + 2] == "${"
        start = at + (2 if braces else 1)
        end = start
        while end < len(value) and value[end] in letters:
            end += 1
        ok = value[at] == "$" and end > start and value[start] not in string.digits
        ok = ok and (not braces or value[end : end + 1] == "}")
        if ok:
            out += variables.get(value[start:end], "")
            at = end + (1 if braces else 0)
        else:
            out += value[at]
            at += 1
    return out


PIECES = [
    "$A",
    "${A}",
    "${NOPE}",
    "$NOPE",
    "$",
    "${",
    "}",
    "$(x)",
    "`x`",
    "${A:-b}",
    "$1",
    "\\",
    "'",
    '"',
    "$$",
    "~",
    "!",
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from([*PIECES, "A"]) | TEXTS).map("".join), min_size=1, max_size=10))
def test_expand_replaces_names_and_nothing_else(values: list[str]) -> None:
    variables = {"A": "x y\n$B `c` '\"*", "A_A": "no"}
    script = "printf '%s\\0' " + " ".join(expand(value) for value in values)
    seen = bash(script, env={**variables, "PATH": "/usr/bin:/bin"}).split(b"\0")[:-1]
    wanted = [expected(value, {**variables, "PATH": "/usr/bin:/bin"}) for value in values]
    shell_own = ("BASH", "PWD", "SHLVL", "UID", "_", "IFS", "PPID", "EUID", "HOSTNAME", "RANDOM")
    for value, got, want in zip(values, seen, wanted, strict=True):
        if not any(f"${own}" in value or f"${{{own}" in value for own in shell_own):
            assert got.decode() == want


def test_home_paths_and_names() -> None:
    assert bash(f"printf %s {path('~/a b')}", env={"HOME": "/h h"}) == b"/h h/a b"
    assert bash(f"printf %s {path('/a/~/b')}") == b"/a/~/b"
    assert comment("a\nb`c`$d") == "a_b_c__d"
    with pytest.raises(ValueError, match="no variable's name"):
        name("A B")


def test_a_template_cannot_print_what_went_through_no_filter() -> None:
    template = Templates()._environment.from_string("echo {{ word }}")
    with pytest.raises(TypeError, match="without a quoting filter"):
        template.render(word="$(x)")


@pytest.mark.parametrize("launcher", ["local", "duo"])
def test_hostile_values_reach_the_launcher_byte_for_byte(tmp_path: Path, launcher: str) -> None:
    node = Node(tmp_path)
    text = "env:\n" + "".join(f"  {key}: {json.dumps(value)}\n" for key, value in HOSTILE.items())
    text += '  EXPANDED: {expand: "$HOME/l:${SPACES}:$UNSET$(x)`y`"}\n'
    write_inventory(tmp_path, INVENTORY.replace("python: /opt/py/bin/python", f"python: {json.dumps(node.python)}"))
    head = HEAD if launcher == "duo" else f"name: j\ndevices_per_node: 2\npython: {json.dumps(node.python)}\n"
    _, plan = compiled(write_job(tmp_path, text, head=head))
    node.stage(plan.nodes[-1])
    seen = node.seen(OSTRAIN_MASTER_PORT="21000", OSTRAIN_ATTEMPT="3", HF_TOKEN="t")
    environ = seen["environ"]
    assert isinstance(environ, dict)
    assert {key: environ.get(key) for key in HOSTILE} == HOSTILE
    assert environ["EXPANDED"] == "/home/me/l:" + HOSTILE["SPACES"] + ":$(x)`y`"
    assert not list(tmp_path.rglob("pwned")) and not list(tmp_path.rglob("y"))
    assert seen["cwd"] == str(node.run_dir)
    several = launcher == "duo"
    assert seen["argv"] == [
        f"--worker_num={16 if several else 2}", f"--local_worker_num={8 if several else 2}",
        f"--master_addr={'192.0.2.1' if several else '127.0.0.1'}", "--master_port=21000",
        f"--node_rank={1 if several else 0}", f"--log_dir={node.run_dir}/logs/attempt-3", "--join=True",
        "--cluster_time_out=600", f"--tail_worker_log={16 if several else 2}",
        *(["--bind_core=True"] if several else []),
        "python", "/a.py", "worker", "--", node.python, "-m", "models.train", "--config", "train.yaml",
    ]  # fmt: skip


def test_environment_of_a_local_cpu_run(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.stage(local_plan(tmp_path, "env: {PYTHONPATH: /mine}\n", node.python).nodes[0])
    environ = node.seen(RANK_TABLE_FILE="/old", RANK_ID="9", MS_ROLE="MS_WORKER", OSTRAIN_MASTER_PORT="0")["environ"]
    assert isinstance(environ, dict)
    assert environ["PYTHONPATH"] == "/b:/mine" and environ["PATH"].split(":")[0] == str(node.bin)
    assert not {"RANK_TABLE_FILE", "RANK_ID", "MS_ROLE"} & environ.keys()
    assert not [key for key in environ if key.startswith(("HCCL", "ASCEND"))]
    assert int(environ["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)
    assert (environ["OSTRAIN_NODE"], environ["OSTRAIN_ATTEMPT"], environ["OSTRAIN_RUN"]) == ("local", "0", "by-hand")
    assert environ["OSTRAIN_MASTER_PORT"] == "8118" and environ["OSTRAIN_RUN_DIR"] == str(node.run_dir)
    assert node.seen(OMP_NUM_THREADS="7")["environ"]["OMP_NUM_THREADS"] == "7"  # type: ignore[index]


def test_environment_of_ascend_nodes_and_setup_scripts(tmp_path: Path) -> None:
    node = Node(tmp_path)
    setup = tmp_path / "set env.sh"
    setup.write_text('export FROM_SETUP="$UNSET_THING:s" HCCL_IF_IP=1.1.1.1 RANK_ID=5; cd /; false\n', encoding="utf-8")
    inventory = INVENTORY.replace("devices: 8", f"devices: [4, 5, 6, 7], interface: eth9, setup: ['{setup}']")
    write_inventory(tmp_path, inventory.replace("/opt/py/bin/python", f"'{node.python}'"))
    text = 'env: {HCCL_CONNECT_TIMEOUT: "7", SUM: {expand: "${FROM_SETUP}+"}}\n'
    _, plan = compiled(write_job(tmp_path, text, head=HEAD.replace("8", "2")))
    node.stage(plan.nodes[1])
    environ = node.seen(FROM_SETUP="old")["environ"]
    assert isinstance(environ, dict)
    wanted = {
        "FROM_SETUP": ":s", "SUM": ":s+", "HCCL_CONNECT_TIMEOUT": "7", "HCCL_EXEC_TIMEOUT": "3604", "HOSTNAME": "b",
        "HCCL_IF_IP": "192.0.2.2", "HCCL_SOCKET_IFNAME": "=eth9", "GLOO_SOCKET_IFNAME": "eth9",
        "ASCEND_RT_VISIBLE_DEVICES": "4,5", "ASCEND_PROCESS_LOG_PATH": f"{node.run_dir}/logs/attempt-0/plog",
    }  # fmt: skip
    assert {key: environ.get(key) for key in wanted} == wanted
    assert "RANK_ID" not in environ and "OMP_NUM_THREADS" not in environ
    assert plan.nodes[1].devices == (4, 5)


def test_a_backend_may_say_at_the_start_which_node_this_is(tmp_path: Path) -> None:
    node = Node(tmp_path)
    write_inventory(tmp_path, INVENTORY.replace("/opt/py/bin/python", f"'{node.python}'"))
    node.stage(compiled(write_job(tmp_path, head=HEAD))[1].nodes[0])
    seen = node.seen(OSTRAIN_NODE_RANK="1", OSTRAIN_MASTER_ADDRESS="198.51.100.7", OSTRAIN_NODE="other")
    argv, environ = seen["argv"], seen["environ"]
    assert isinstance(argv, list) and {"--master_addr=198.51.100.7", "--node_rank=1"} <= set(argv)
    assert isinstance(environ, dict) and environ["HOSTNAME"] == "other"
    argv = node.seen(OSTRAIN_NODE_RANK="", OSTRAIN_MASTER_ADDRESS="")["argv"]
    assert isinstance(argv, list) and {"--master_addr=192.0.2.1", "--node_rank=0"} <= set(argv)
    refused = node.launch(check=False, OSTRAIN_NODE_RANK="one")
    assert refused.returncode == 2 and "OSTRAIN_NODE_RANK is one, which is no number" in refused.stderr


def test_all_devices_of_a_node_need_no_selection_unless_a_backend_chose(tmp_path: Path) -> None:
    node = Node(tmp_path)
    write_inventory(tmp_path, INVENTORY.replace("/opt/py/bin/python", f"'{node.python}'"))
    node.stage(compiled(write_job(tmp_path, head=HEAD))[1].nodes[0])
    environ = node.seen(ASCEND_RT_VISIBLE_DEVICES="3")["environ"]
    assert isinstance(environ, dict) and "ASCEND_RT_VISIBLE_DEVICES" not in environ
    chosen = "8,9,10,11,12,13,14,15"
    environ = node.seen(OSTRAIN_DEVICES=chosen)["environ"]
    assert isinstance(environ, dict) and environ["ASCEND_RT_VISIBLE_DEVICES"] == chosen
    for wrong, words in (("0,1", "8 workers, but the devices are 0,1"), ("0,,1", "no list of ids")):
        refused = node.launch(check=False, OSTRAIN_DEVICES=wrong)
        assert refused.returncode == 2 and words in refused.stderr


@pytest.mark.parametrize(
    ("text", "env", "words"),
    [
        ("env: {HF: {secret: my_token}}\n", {}, "HF: is missing: ostrain hands over the secret my_token"),
        ("setup: [/no/such/env.sh]\n", {}, "the setup script /no/such/env.sh cannot be read"),
        ("", {"OSTRAIN_AGENT": ""}, "OSTRAIN_AGENT: is missing: the path of the agent"),
    ],
)
def test_what_is_missing_on_a_node_is_named(tmp_path: Path, text: str, env: dict[str, str], words: str) -> None:
    node = Node(tmp_path)
    node.stage(local_plan(tmp_path, text, node.python).nodes[0])
    done = node.launch(check=False, **env)
    assert done.returncode != 0 and words in done.stderr
    assert not (node.run_dir / "seen.json").exists()


@pytest.mark.parametrize(
    ("python", "words"), [("/no/python", "no Python /no/python"), ("pythonx", "no pythonx on PATH")]
)
def test_a_python_that_is_not_there(tmp_path: Path, python: str, words: str) -> None:
    node = Node(tmp_path)
    node.stage(local_plan(tmp_path, python=python).nodes[0])
    done = node.launch(check=False)
    assert done.returncode == 127 and words in done.stderr


def test_a_bare_python_is_found_on_the_path_that_setup_scripts_make(tmp_path: Path) -> None:
    node = Node(tmp_path)
    (tmp_path / "activate").write_text(f"PATH={sh(str(node.bin))}:$PATH\n", encoding="utf-8")
    plan = local_plan(tmp_path, f"setup: ['{tmp_path}/activate']\n", "python")
    node.stage(plan.nodes[0])
    argv = node.seen()["argv"]
    assert isinstance(argv, list) and argv[-5] == node.python
    assert plan.checks["modules"] == [] and plan.checks["programs"] == ["bash"]


def test_secrets_reach_the_launcher_through_the_environment_alone(tmp_path: Path) -> None:
    node = Node(tmp_path)
    plan = local_plan(tmp_path, 'env: {HF: {secret: tok}, URL: {expand: "https://$HF@x"}}\n', node.python)
    node.stage(plan.nodes[0])
    environ = node.seen(HF="s3cr't")["environ"]
    assert isinstance(environ, dict) and (environ["HF"], environ["URL"]) == ("s3cr't", "https://s3cr't@x")
    assert "s3cr" not in plan.to_json()


def test_names_bash_would_not_pass_on_are_refused() -> None:
    """Every variable that bash has by itself and that does not come out as it went in has to be refused."""
    names = bash("compgen -v", env={"PATH": "/usr/bin:/bin"}).decode().split()
    assert {"UID", "RANDOM", "BASH_VERSINFO"} <= {*names, *_BASH_OWNED}
    for variable in names:
        if variable in ("PATH", "OSTYPE", "MACHTYPE", "HOSTTYPE", "HOSTNAME", "TERM", "PS4"):
            continue
        script = f"export {variable}=a\\ b; exec env -0"
        done = subprocess.run(["bash", "-c", script], env={"PATH": "/usr/bin:/bin"}, capture_output=True, timeout=30)
        arrived = f"{variable}=a b".encode() in done.stdout.split(b"\0")
        assert arrived or name_problem(variable), variable


def test_a_thousand_nodes_compile_in_proportion(tmp_path: Path) -> None:
    def seconds(count: int) -> float:
        nodes = "".join(f"  - {{name: n{i}, host: 10.{i // 250}.1.{i % 250 + 1}}}\n" for i in range(count))
        write_inventory(tmp_path, INVENTORY[: INVENTORY.index("  - {name: a")] + nodes)
        loaded = load_job(write_job(tmp_path, head=HEAD.replace("nodes: 2", f"nodes: {count}")))
        start = time.perf_counter()
        plan = compile_plan(loaded)
        assert plan.world == 8 * count and plan.nodes[-1].ranks[-1] == 8 * count - 1
        return time.perf_counter() - start

    few, many = seconds(64), seconds(1280)
    assert many < 10 and many < 20 * 3 * max(few, 0.01)


def test_every_script_is_valid_bash(tmp_path: Path) -> None:
    write_inventory(tmp_path)
    for plan in (compiled(write_job(tmp_path, head=HEAD))[1], local_plan(tmp_path)):
        for file in plan.nodes[0].files:
            if file.path.endswith(".sh"):
                subprocess.run(["bash", "-n"], input=file.text.encode(), check=True, timeout=30)
