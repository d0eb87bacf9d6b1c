"""Follows a run on Slurm: one stream from the login machine for all nodes, and Slurm's answers between its lines."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from cluster.backend import Chunk, FollowItem, FollowLost, NodeError, NodeNews, PerNode
from cluster.follow import follow
from cluster.transport import Stream

FINAL = ("SUCCEEDED", "FAILED", "CANCELLED")
LOOK = 5.0  # seconds between two questions to Slurm; a node's last word is looked into at once
SOON = 0.5
GROUP = "login"  # the name the stream of all nodes goes by

OpenGroup = Callable[[dict[str, Any]], Stream]
Poll = Callable[[], "PerNode[dict[str, Any]]"]


class _Endable:
    """A stream that comes to its proper end when the run is over: the far side does not know when that is."""

    def __init__(self, inner: Stream, over: threading.Event) -> None:
        self._inner, self._over = inner, over

    def send(self, data: bytes) -> None:
        self._inner.send(data)

    def lines(self, silence: float) -> Iterator[bytes]:
        for line in self._inner.lines(silence):
            if self._over.is_set():
                break
            yield line
        if self._over.is_set():
            yield b'{"end": true}'

    def close(self) -> None:
        self._inner.close()


class _Keeper:
    """Asks for the merged status again and again, tells of changes, and knows when the run is over."""

    def __init__(self, poll: Poll, items: queue.Queue[FollowItem | BaseException | None]) -> None:
        self._poll, self._items = poll, items
        self.over = threading.Event()
        self.hurry = threading.Event()
        self._last: dict[str, Any] = {}

    def run(self) -> None:
        try:
            while not self.over.is_set():
                self.look()
                if self.hurry.wait(LOOK) and not self.over.wait(SOON):
                    self.hurry.clear()
        except BaseException as error:  # a mistake of ours: the reader must see it
            self._items.put(error)

    def outdates(self, news: NodeNews) -> bool:
        """Whether the node has been told to have ended the attempt that this news is of."""
        last = self._last.get(news.node, {})
        older = int(last.get("attempt", 0)) >= int(news.status.get("attempt", 0))
        return "scheduler" not in news.status and last.get("state") in FINAL and older

    def look(self) -> None:
        answers = self._poll()
        statuses = {name: one for name, one in answers.items() if not isinstance(one, NodeError)}
        for name, status in statuses.items():
            seen = {**status, "time": 0}
            if self._last.get(name) != seen:
                self._last[name] = seen
                self._items.put(NodeNews(name, status))
        done = [status for status in statuses.values() if status["state"] in FINAL]
        if len(done) == len(answers) and not any((one.get("scheduler") or {}).get("live") for one in done):
            self.over.set()


def _split(item: Chunk) -> Chunk:
    node, _, path = item.path.partition("/")
    return replace(item, node=node, path=path)


def _grouped(cursors: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    return {GROUP: {f"{node}/{path}": end for node, paths in cursors.items() for path, end in paths.items()}}


def follow_once(
    open_group: OpenGroup, cursors: Mapping[str, Mapping[str, int]], patterns: tuple[str, ...]
) -> Iterator[FollowItem]:
    """Everything there is beyond the cursors, then the end."""
    for item in follow({GROUP: open_group}, _grouped(cursors), patterns, False):
        yield _split(item) if isinstance(item, Chunk) else item


def follow_run(
    open_group: OpenGroup, poll: Poll, cursors: Mapping[str, Mapping[str, int]], patterns: tuple[str, ...]
) -> Iterator[FollowItem]:
    """Stream until the run is over: every node has its last word and no job of it is left in Slurm."""
    items: queue.Queue[FollowItem | BaseException | None] = queue.Queue()
    keeper = _Keeper(poll, items)
    reached: dict[str, dict[str, int]] = {node: dict(paths) for node, paths in cursors.items()}

    def opened(request: dict[str, Any]) -> Stream:
        return _Endable(open_group(request), keeper.over)

    def pump() -> None:
        try:
            for item in follow({GROUP: opened}, _grouped(cursors), patterns, True):
                items.put(item)
                if keeper.over.is_set():
                    break
        except BaseException as error:  # as above
            items.put(error)
        items.put(None)

    threads = [threading.Thread(target=target, daemon=True) for target in (pump, keeper.run)]
    for thread in threads:
        thread.start()
    try:
        while (item := items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield from _told(item, keeper, reached)
        yield from _rest(open_group, items, keeper, reached, patterns)
    finally:
        keeper.over.set()
        keeper.hurry.set()
        for thread in threads:
            thread.join(5.0)


def _told(item: FollowItem, keeper: _Keeper, reached: dict[str, dict[str, int]]) -> Iterator[FollowItem]:
    """One item as the reader is to see it. A last word in a file is no news before Slurm was asked: another attempt
    may follow."""
    if isinstance(item, Chunk):
        item = _split(item)
        reached.setdefault(item.node, {})[item.path] = item.end
        yield item
    elif isinstance(item, NodeNews) and "scheduler" not in item.status and item.status.get("state") in FINAL:
        keeper.hurry.set()
    elif isinstance(item, NodeNews) and keeper.outdates(item):
        return
    elif not isinstance(item, FollowLost) or not keeper.over.is_set():
        yield item


def _rest(
    open_group: OpenGroup,
    items: queue.Queue[FollowItem | BaseException | None],
    keeper: _Keeper,
    reached: dict[str, dict[str, int]],
    patterns: tuple[str, ...],
) -> Iterator[FollowItem]:
    """What was written between the last look at the files and the end; then what the keeper still has to tell."""
    for item in follow_once(open_group, reached, patterns):
        if isinstance(item, Chunk):
            yield item
    while not items.empty():
        last = items.get()
        if isinstance(last, NodeNews) and "scheduler" in last.status:
            yield last
