"""The live view: what it knows, how it looks on any terminal, and that it leaves the run alone."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.backend import FollowLost, NodeError
from ostrain.curves import LatestAttempt, thinned
from ostrain.top.board import Board
from ostrain.top.events import Told
from ostrain.top.frame import Size, frame
from ostrain.top.plot import plot
from ostrain.top.snapshot import snapshot
from ostrain.top.temperature import parse
from tests.ostrain.watched import chunk, make_run, metrics, news

NOW = 1050.0
ROOT = Path(__file__).parents[2]


def drawn(board: Board, width: int = 100, height: int = 40, **options: Any) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=False, highlight=False)
    told = options.pop("told", list(board.events))
    console.print(frame(board, Size(width, height), NOW, told, **options))
    return out.getvalue().splitlines()


def filled(nodes: int = 2, ranks: int = 2, steps: int = 40) -> Board:
    board = Board(make_run(nodes, ranks))
    for node in board.nodes.values():
        for rank in node.ranks:
            slow = 0.9 if rank.rank == 3 else 0.5
            lines = [metrics(step, seconds=slow) for step in range(max(1, steps - 9) if rank.rank else 1, steps + 1)]
            board.take(chunk(node.name, f"metrics/rank-{rank.rank}.jsonl", lines), NOW)
        board.take(news(node.name, [rank.rank for rank in node.ranks], steps), NOW)
    return board


def test_every_rank_has_a_line() -> None:
    board = filled()
    lines = drawn(board)
    assert lines[0].startswith("job-abc  RUNNING (running)  attempt 1  4 ranks on 2 nodes")
    assert "step 40/100  loss 1.1353  0.90 s/step  about 54s left  checkpoint 10" in lines[1]
    rows = [line.split() for line in lines if line.startswith("node-")]
    assert [row[:4] for row in rows][3] == ["node-1", "3", "40", "0.90"]
    assert rows[0][4:] == ["step", "10%", "3.0", "GB", "0s"]
    assert any("⠁" <= letter <= "⣿" for line in lines for letter in line), "the loss curve"


def test_a_lost_node_is_shown_since_when_and_comes_back() -> None:
    board = filled()
    board.take(FollowLost("node-1", NodeError("unreachable", "no route", node="node-1"), False), NOW - 30)
    board.take(FollowLost("node-1", NodeError("unreachable", "no route", node="node-1"), True), NOW - 5)
    text = "\n".join(drawn(board))
    assert "no answer from node-1" in text and "no answer 30s (given up)" in text
    board.take(news("node-1", [2, 3], 41), NOW)
    assert "no answer" not in "\n".join(drawn(board))


@pytest.mark.parametrize(("width", "height"), [(20, 5), (40, 12), (60, 24), (80, 24), (100, 40), (200, 60)])
@pytest.mark.parametrize("nodes", [1, 3, 125])
def test_it_fits_any_terminal(width: int, height: int, nodes: int) -> None:
    board = filled(nodes, 8)
    lines = drawn(board, width, height, hint="q leaves", told=[Told(NOW, "node-1", "fault\nx\x1b[2J" * 20, True)] * 9)
    assert len(lines) <= max(height, 8) and max(map(len, lines)) <= width
    assert "\x1b" not in "\n".join(lines)


def test_a_thousand_ranks_are_quick_and_the_worst_are_named() -> None:
    board = filled(125, 8)
    victim = board.ranks[777]
    victim.step, victim.state = 31, "SIGKILL"
    board.take(FollowLost("node-99", NodeError("unreachable", "no route", node="node-99"), False), NOW - 30)
    began = time.monotonic()
    text = "\n".join(drawn(board, 100, 40))
    assert time.monotonic() - began < 2.0
    assert "777" in text and "SIGKILL" in text and "node-99" in text and "more nodes" in text


def test_markup_in_names_is_shown_as_it_is() -> None:
    board = filled()
    board.ranks[0].phase = "[red]x[/red]"
    assert "[red]x[/red]" in "\n".join(drawn(board))


def test_a_later_attempt_takes_the_place_of_what_it_repeats() -> None:
    board = filled()
    again = [metrics(step, attempt=2, loss=9.0) for step in (21, 22)]
    first = sum(len(json.dumps(metrics(step))) + 1 for step in range(1, 41))
    board.take(chunk("node-0", "metrics/rank-0.jsonl", again, first), NOW)
    assert board.losses.points()[-2:] == [(21, 9.0), (22, 9.0)] and len(board.losses.points()) == 22
    assert board.step == 22
    assert list(board.moved(make_run(attempt=2)).losses.points()) == board.losses.points()


def test_half_lines_and_nonsense_are_passed_over() -> None:
    board = Board(make_run())
    odd = '"step": 3}\n[1]\n{"step": "x"}\n{"event": "fault"}\nnull\n' + json.dumps(metrics(5)) + "\n"
    item = chunk("node-0", "metrics/rank-0.jsonl", [], 100)
    board.take(type(item)("node-0", item.path, 100, 100 + len(odd), odd), NOW)
    assert board.ranks[0].step == 5
    drawn(Board(make_run()))
    snapshot(Board(make_run()), NOW, [])


def test_snapshot_is_json() -> None:
    told = json.loads(json.dumps(snapshot(filled(), NOW, [Told(1.0, "n", "text")])))
    assert told["step"] == 40 and told["nodes"][1]["ranks"][1]["seconds_per_step"] == 0.9
    assert told["curve"][0][0] == 1 and told["events"] == [{"time": 1.0, "who": "n", "text": "text", "bad": False}]


def test_thinned_keeps_ends_and_extremes() -> None:
    points = [(float(x), 1.0) for x in range(10_000)]
    points[5000], points[7000] = (5000.0, 99.0), (7000.0, -5.0)
    kept = thinned(points, 100)
    assert len(kept) <= 100 and kept[0][0] == 0 and kept[-1][0] == 9999
    assert (5000.0, 99.0) in kept and (7000.0, -5.0) in kept
    many = LatestAttempt(limit=1000)
    for step in range(5000):
        many.add(step, 1, float(step == 3000))
    assert len(many.points()) <= 1000 and (3000, 1.0) in many.points()


def test_plot_has_its_size() -> None:
    lines = plot([(float(x), float(x % 7)) for x in range(300)], 60, 8)
    assert len(lines) == 8 and max(map(len, lines)) <= 60
    assert plot([(1.0, 2.0)], 60, 8) == []
    assert set("".join(plot([(1.0, 2.0), (2.0, 2.0)], 60, 8, plain=True))) <= set("*| 0123456789.step")


def test_temperatures_of_a_sample() -> None:
    text = (
        "| 0     910B3               | OK            | 101.8       43                0    / 0             |\n"
        "| 0                         | 0000:C1:00.0  | 0           0    / 0          3318 / 65536         |\n"
        "| 1     910B3               | OK            | -           51                0    / 0             |\n"
    )
    assert parse(text) == {0: 43, 1: 51}
    board = filled()
    board.nodes["node-0"].temperatures = {0: 43, 1: 51}
    assert "51 C" in "\n".join(drawn(board))


def on_terminal(environment: dict[str, str], *words: str) -> tuple[int, int]:
    """The command on a terminal of its own: pid, terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        # Who started the tests in the background has left Ctrl-C ignored.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.chdir(ROOT)
        os.execvpe(sys.executable, [sys.executable, "-m", "ostrain", *words], environment)
    return pid, terminal


def read_until(terminal: int, wanted: bytes, bound: float = 20.0) -> bytes:
    deadline, seen = time.monotonic() + bound, b""
    os.set_blocking(terminal, False)
    while wanted not in seen:
        assert time.monotonic() < deadline, seen[-2000:]
        try:
            seen += os.read(terminal, 65536)
        except BlockingIOError:
            time.sleep(0.05)
        except OSError:
            break
    return seen


def test_live_on_a_terminal_ends_with_q_and_with_ctrl_c(tmp_path: Path) -> None:
    """A run that is not on its nodes: top shows what it can and leaves nothing behind."""
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    code = (
        "from ostrain.store import Store; from ostrain.states import State; from ostrain.plan import *\n"
        "node = NodePlan('n', 0, NodeAccess('localhost'), 'h', (0,), (0,), ('true',), ())\n"
        "plan = LaunchPlan('toy', 'local', 'msrun', 'CPU', {}, 1, 'h', 0, 5, (node,))\n"
        "store = Store(); run = store.add(plan, 'j', ''); store.release(run.run_id, State.RUNNING, 'running')\n"
        "import os, time; d = os.environ['XDG_STATE_HOME'] + f'/ostrain/runs/{run.run_id}/n'\n"
        "os.makedirs(d + '/metrics'); os.makedirs(d + '/agent'); import json\n"
        "from cluster.agent import own_identity\n"
        f"me = {{'pid': {os.getpid()}, 'start': int(__import__('ostrain.store').store.process_identity({os.getpid()})"
        ".split(':')[1]), 'boot_id': own_identity()['boot_id']}\n"
        "json.dump(me, open(d + '/agent/lock', 'w'))\n"
        "json.dump({'attempt': 1, 'state': 'RUNNING', 'reason': 'running', **me}, open(d + '/agent/state.json', 'w'))\n"
        "line = json.dumps({'step': 4, 'attempt': 1, 'loss': 0.25, 'seconds': 1.5, 'time': time.time()})\n"
        "open(d + '/metrics/rank-0.jsonl', 'w').write(line + '\\n')\n"
    )
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, check=True, timeout=60)
    for key, expected in ((b"q", 0), (b"\x03", 130)):
        pid, terminal = on_terminal(environment, "top")
        read_until(terminal, b"1.50")
        os.write(terminal, key)
        deadline = time.monotonic() + 15
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            assert time.monotonic() < deadline
            try:
                os.read(terminal, 65536)
            except OSError:
                time.sleep(0.05)
        assert os.waitstatus_to_exitcode(ended[1]) == expected
        os.close(terminal)
    plain = subprocess.run(
        [sys.executable, "-m", "ostrain", "top"], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert plain.returncode == 2 and "--once" in plain.stderr
    once = subprocess.run(
        [sys.executable, "-m", "ostrain", "top", "--once"], env=environment, cwd=ROOT, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert once.returncode == 0 and "step 4/5" in once.stdout and "\x1b" not in once.stdout, once.stderr
