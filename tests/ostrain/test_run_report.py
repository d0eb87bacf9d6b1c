"""The report of a run: one file, nothing outside it, whatever names there are and however long it ran."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cluster.backend import FollowLost, NodeError
from ostrain.errors import OstrainError
from ostrain.page.build import page, write_page
from ostrain.page.history import History
from ostrain.page.svg import ticks
from ostrain.plan import PlanFile
from ostrain.states import State
from ostrain.status import RunStatus
from ostrain.top.events import Told
from tests.ostrain.watched import chunk, make_run, metrics, news

EVIL = "<script>alert(1)</script>\"'&\x1b"


class Seen(HTMLParser):
    """Tags that were opened, and attributes that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.outside += [f"{tag} {name}" for name, value in attrs if name in ("src", "href", "action", "data", "style")
                         or name.startswith("on")]  # fmt: skip


def history(nodes: int = 2, ranks: int = 2, **changes: Any) -> History:
    made = History(make_run(nodes, ranks, attempt=2, **changes))
    items: list[Any] = []
    for node in made.run.plan.nodes:
        for rank in node.ranks:
            lines = [metrics(step) for step in range(1, 31)]
            lines += [metrics(step, attempt=2, seconds=0.6 if rank else 0.5) for step in range(21, 51)]
            items.append(chunk(node.name, f"metrics/rank-{rank}.jsonl", lines))
        fault = {"reason": "worker_killed", "rank": 1, "signal": "SIGKILL", "exit_code": None, "message": None}
        events: list[dict[str, Any]] = [
            {"time": 1001.0, "attempt": 1, "event": "started"},
            {"time": 1020.0, "attempt": 1, "event": "checkpoint_saved", "step": 20, "bytes": 1 << 20, "seconds": 0.25},
            {"time": 1030.0, "attempt": 1, "event": "fault", "fault": fault},
            {"time": 1031.0, "attempt": 1, "event": "ended", "state": "FAILED", "reason": "worker_killed"},
            {"time": 1040.0, "attempt": 2, "event": "started"},
            {"time": 1042.0, "attempt": 2, "event": "resumed", "step": 20},
            {"time": 1060.0, "attempt": 2, "event": "clip_skipped", "path": EVIL, "reason": EVIL},
        ]
        items += [chunk(node.name, "events.jsonl", events), news(node.name, list(node.ranks), 50, attempt=2)]
    made.take(items)
    return made


def status(made: History, **changes: Any) -> RunStatus:
    return RunStatus(made.run.run_id, 2, State.RUNNING, "running", False, **changes)


def test_a_run_with_a_restart() -> None:
    made = history()
    text = page(made, status(made), [Told(1035.0, "supervisor", "decided restart")], {}, 1100.0)
    seen = Seen()
    seen.feed(text)
    assert "svg" in seen.tags and "script" not in seen.tags and seen.outside == []
    assert not re.search(r"https?://(?!www\.w3\.org)", text) and "url(" not in text
    for wanted in ("attempt 2", "FAILED (worker_killed)", "at work", "decided restart", "resumed from step 20",
                   "Seconds a step", "rank 1: worker_killed SIGKILL", "No rank holds the others up"):  # fmt: skip
        assert wanted in text
    for picture in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(picture)
    assert text.count('class="line before"') == 5, "the first attempt under the second, in each of the curves"


def test_weird_names_are_escaped(tmp_path: Path) -> None:
    made = history(job_path=EVIL)
    plan = made.run.plan
    nodes = (replace(plan.nodes[0], files=(PlanFile(EVIL, EVIL),), address=EVIL), *plan.nodes[1:])
    made.run = replace(made.run, plan_json=replace(plan, nodes=nodes, secrets={EVIL: EVIL}, layout={EVIL: 1}).to_json())
    fault = {"reason": EVIL, "node": EVIL, "rank": None, "signal": None, "tail": [EVIL], "log": EVIL,
             "message": {"what": EVIL}}  # fmt: skip
    versions = {"node-0": {"hostname": EVIL, "python": {"version": EVIL}, "modules": {EVIL: EVIL}}}
    write_page(made, status(made, fault=fault), [Told(1.0, EVIL, EVIL, True)], versions, tmp_path / "r.html", 1100.0)
    text = (tmp_path / "r.html").read_text()
    assert "<script" not in text and text.count("&lt;script&gt;") > 10
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_a_long_run_of_many_ranks_stays_small() -> None:
    made = history(125, 8)
    for step in range(51, 60_000):
        made._curves(metrics(step, attempt=2, loss=float(step == 30_000) * 50))
    text = page(made, status(made), [Told(float(n), "supervisor", "x" * 200) for n in range(5000)], {}, 1100.0)
    assert len(text) < 1_500_000
    assert "more ranks are not" in text and "earlier events are not listed" in text


def test_a_run_without_any_step_and_one_with_a_lost_node() -> None:
    made = History(make_run())
    made.take([FollowLost("node-1", NodeError("unreachable", "no route", node="node-1"), True)])
    text = page(made, status(made), [], {}, 1100.0)
    assert "No step was made yet" in text and "node node-1 did not answer: no route" in text


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    made = History(make_run(1, 1))
    odd = [metrics(1, loss=None), metrics(2, loss="x", seconds=None), {"step": 3}, {"step": 4, "loss": 1e308}]
    made.take([chunk("node-0", "metrics/rank-0.jsonl", odd), chunk("node-0", "events.jsonl", [{"event": "fault"}, {}])])
    page(made, status(made), [], {}, 1100.0)
    with pytest.raises(OstrainError, match="cannot be written"):
        (tmp_path / "file").touch()
        write_page(made, status(made), [], {}, tmp_path / "file" / "r.html", 1.0)


def test_ticks_are_round() -> None:
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(3.0, 3.0) == [3.0]
