"""Follows the files of a run on all its nodes at once, exactly once, across broken connections."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.backend import Chunk, FollowItem, FollowLost, NodeError, NodeNews, Tick
from cluster.transport import Stream

SILENCE = 10.0  # an agent ticks every 2 s
KEEPALIVE = 30.0  # an agent whose client has not been heard of for so long stops streaming
BACK_OFF = (0.5, 10.0)
GIVE_UP = 600.0
LASTING = frozenset({"unreachable", "protocol"})  # other errors do not go away by waiting
_QUEUE = 1000

Open = Callable[[dict[str, Any]], Stream]


@dataclass
class NodeFollow:
    """One node's stream and the thread that keeps it open."""

    node: str
    open: Open
    cursors: dict[str, int]
    patterns: tuple[str, ...]
    until_final: bool
    items: queue.Queue[FollowItem | BaseException | None]
    stop: threading.Event
    stream: Stream | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, item: FollowItem | BaseException | None) -> None:
        """Wait for the reader, but not once it has gone."""
        while not self.stop.is_set():
            try:
                self.items.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:  # a mistake of ours: the reader must see it, not wait for ever
            self.put(error)
        self.put(None)

    def _run(self) -> None:
        wait, well = BACK_OFF[0], time.monotonic()
        while not self.stop.is_set():
            before = time.monotonic()
            try:
                if self._once():
                    return
                error = NodeError("unreachable", "the stream ended", node=self.node, why="the agent closed it")
            except NodeError as caught:
                error = caught
            now = time.monotonic()
            if now - before > SILENCE:  # it worked for a while
                wait, well = BACK_OFF[0], now
            final = error.kind not in LASTING or now - well > GIVE_UP or not self.until_final
            self.put(FollowLost(self.node, error, final))
            if final or self.stop.wait(wait):
                return
            wait = min(2 * wait, BACK_OFF[1])

    def _once(self) -> bool:
        """Read one stream; whether it came to its proper end."""
        request = {"cursors": self.cursors, "patterns": self.patterns, "until_final": self.until_final}
        stream = self.open({**request, "keepalive": KEEPALIVE})
        with self.lock:
            self.stream = stream
        if self.stop.is_set():
            stream.close()
            return True
        alive = time.monotonic()
        try:
            for line in stream.lines(SILENCE):
                if self._take(line):
                    return True
                if self.until_final and time.monotonic() - alive > KEEPALIVE / 4:
                    stream.send(b"\n")
                    alive = time.monotonic()
            return self.stop.is_set()
        finally:
            stream.close()

    def _take(self, line: bytes) -> bool:
        """Handle one frame; True for the last one."""
        if not line.startswith(b"{"):  # a login shell's start-up files may print something first
            return False
        try:
            frame = json.loads(line)
        except ValueError:
            raise NodeError(
                "protocol", "the stream holds something else than frames", node=self.node, why=repr(line[:200])
            ) from None
        if "path" in frame:
            path, offset, end = frame["path"], frame["offset"], frame["end"]
            if offset != self.cursors.get(path, 0):
                raise NodeError("protocol", f"a gap in {path}", node=self.node, why=f"got {offset}")
            self.cursors[path] = end
            self.put(Chunk(self.node, path, offset, end, frame["text"]))
        elif "status" in frame:
            self.put(NodeNews(self.node, frame["status"]))
        elif "tick" in frame:
            self.put(Tick(self.node))
        elif "error" in frame:
            info = frame["error"]
            raise NodeError(info["kind"], info["what"], node=self.node, why=info["why"], next_step=info["next"])
        return "end" in frame and "path" not in frame

    def close(self) -> None:
        with self.lock:
            if self.stream is not None:
                self.stream.close()


def follow(
    opens: Mapping[str, Open],
    cursors: Mapping[str, Mapping[str, int]],
    patterns: tuple[str, ...],
    until_final: bool,
) -> Iterator[FollowItem]:
    """Merge the streams of all nodes. Closing the generator closes them."""
    items: queue.Queue[FollowItem | BaseException | None] = queue.Queue(_QUEUE)
    stop = threading.Event()
    nodes = [
        NodeFollow(name, open, dict(cursors.get(name, {})), patterns, until_final, items, stop)
        for name, open in opens.items()
    ]
    threads = [threading.Thread(target=node.run, name=f"follow {node.node}", daemon=True) for node in nodes]
    for thread in threads:
        thread.start()
    open_streams = len(threads)
    try:
        while open_streams:
            item = items.get()
            if item is None:
                open_streams -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        stop.set()
        for node in nodes:
            node.close()
        for thread in threads:
            thread.join(5.0)
