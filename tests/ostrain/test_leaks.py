"""A secret's value in a job or in what it pushes is refused before anything is stored."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from ostrain.errors import OstrainError
from ostrain.leaks import refuse_leaks, short_ones
from ostrain.plan import LaunchPlan, NodeAccess, NodePlan, PlanFile

VALUE = "hf_S3cretValue"


def plan(text: str = "steps: 3\n", **sources: str) -> LaunchPlan:
    file = PlanFile("sample.yaml", text)
    nodes = tuple(
        NodePlan(f"node-{n}", n, NodeAccess("h"), "h", (n,), (0,), ("bash", "launch.sh"), (file,)) for n in range(3)
    )
    return LaunchPlan("j", "ssh", "msrun", "CPU", {}, 3, "h", 0, 1, nodes, sources, {"HF_TOKEN": "hf_token"})


@pytest.mark.parametrize("text", [VALUE, f'"{VALUE}"', base64.b64encode(f"x:{VALUE}".encode()).decode()])
def test_in_a_prompt(text: str) -> None:
    with pytest.raises(OstrainError) as caught:
        refuse_leaks(plan(f"prompts:\n- a cat\n- a dog {text}\n"), {"HF_TOKEN": VALUE})
    assert caught.value.where == "sample.yaml (rendered from the job) line 3 holds the value of the secret hf_token"
    assert caught.value.exit_code == 2 and VALUE not in str(caught.value)


def test_in_a_pushed_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "prompts.txt").write_text(f"one\n{VALUE} two\n")
    (tmp_path / "large").write_bytes(b"\0" * (1 << 20) + VALUE.encode())
    with pytest.raises(OstrainError) as caught:
        refuse_leaks(plan(texts=str(tmp_path)), {"HF_TOKEN": VALUE})
    assert caught.value.where == "files/texts/sub/prompts.txt line 2 holds the value of the secret hf_token"


def test_what_is_fine(tmp_path: Path) -> None:
    refuse_leaks(plan(gone=str(tmp_path / "gone")), {"HF_TOKEN": VALUE})
    refuse_leaks(plan("steps: 3 train"), {"HF_TOKEN": "train"})
    refuse_leaks(plan(VALUE), {})
    assert short_ones({"A": "abc", "B": "abcd"}) == ["A"]
