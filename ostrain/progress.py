"""Live progress of a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Protocol

from ostrain.talk import say
from ostrain.watch import Event, News, Notice, Phase, Step

# Events worth a line; the rest is in events.jsonl.
_TOLD = {
    "clip_skipped", "checkpoint_saved", "resumed", "train_finished",
}  # fmt: skip

_HIDDEN = {"time", "node", "attempt", "event", "tail", "message", "rank", "agent", "launcher"}
# What a wait is for; other phases show themselves.
_PHASES = {
    "starting": "starting MindSpore",
    "loading": "looking at the clips",
    "compiling": "compiling the training step; this takes a while, once for each shape",
}


class Progress(Protocol):
    """Shows news of a run."""

    def __enter__(self) -> Progress: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, news: News) -> None: ...


def event_text(event: Event) -> str | None:
    """One line for an event, or None for those that are not told."""
    record = event.record
    name = str(record.get("event"))
    if name not in _TOLD:
        return None
    hidden = _HIDDEN | ({"path"} if name == "checkpoint_saved" else set())
    details = " ".join(
        f"{key}={_short(key, value)}" for key, value in record.items() if key not in hidden and value not in (None, [])
    )
    return f"{event.node}: {name.replace('_', ' ')} {details}".rstrip()


def _short(key: str, value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    if len(text) <= 80:
        return text
    # The end of a path tells which file it is.
    return "..." + text[-77:] if key == "path" else text[:77] + "..."


def step_text(record: dict[str, Any], steps: int) -> str:
    total = record.get("steps") or steps
    text = f"step {record['step']}" + (f"/{total}" if total else "")
    if record.get("loss") is not None:
        text += f"  loss {record['loss']:.4f}"
    text += f"  {record['seconds']:.2f} s/step"
    if record.get("data_wait") is not None:
        text += f"  data wait {record['data_wait']:.2f} s"
    return text


class PlainProgress:
    """Lines on standard error: about twenty over the run, and at least one every ten seconds while steps come."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._every = max(1, steps // 20)
        self._told = 0.0

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, news: News) -> None:
        if isinstance(news, Step):
            due = time.monotonic() - self._told > 10.0
            if due or news.record["step"] in (1, self._steps) or news.record["step"] % self._every == 0:
                self._told = time.monotonic()
                say(step_text(news.record, self._steps))
        elif isinstance(news, Phase):
            if news.name in _PHASES:
                say(_PHASES[news.name])
        elif isinstance(news, Notice):
            say(news.text)
        elif text := event_text(news):
            say(text)


class BarProgress:
    """A rich progress bar with loss, seconds a step and the time left; other news scroll by above it."""

    def __init__(self, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[pace]} s/step"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._steps = steps
        self._task = self._bar.add_task("starting", total=steps or None, loss="-", pace="-")

    def __enter__(self) -> BarProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, news: News) -> None:
        if isinstance(news, Step):
            record = news.record
            loss = f"{record['loss']:.4f}" if record.get("loss") is not None else "-"
            self._bar.update(
                self._task,
                description="working",
                completed=record["step"],
                total=record.get("steps") or self._steps or None,
                loss=loss,
                pace=f"{record['seconds']:.2f}",
            )
        elif isinstance(news, Phase):
            self._bar.update(self._task, description={"step": "working"}.get(news.name, news.name))
        elif isinstance(news, Notice):
            self._bar.console.print(news.text, markup=False, highlight=False)
        elif text := event_text(news):
            self._bar.console.print(text, markup=False, highlight=False)


def progress_for(steps: int, *, terminal: bool) -> Progress:
    return BarProgress(steps) if terminal else PlainProgress(steps)
