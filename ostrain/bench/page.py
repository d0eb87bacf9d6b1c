"""The report as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ostrain.bench.store import write_text
from ostrain.bench.summary import Row
from ostrain.bench.text import bytes_text, change_text, compile_text, notes, published_text, seconds_text, share_text
from ostrain.templating import html


def write_page(head: Mapping[str, Any], rows: Sequence[Row], picture: Path | None, path: Path) -> None:
    """``report.html``: head (``Session.describe``), tables and the picture, if there is one."""
    filters: dict[str, Callable[..., str]] = {
        "seconds": seconds_text,
        "bytes": bytes_text,
        "share": share_text,
        "number": lambda value: "-" if value is None else f"{value:,.0f}",
        "times": lambda value: "-" if value is None else f"{value:.2f}x",
        "compile": compile_text,
        "change": change_text,
        "published": published_text,
        "day": lambda value: time.strftime("%Y-%m-%d %H:%M", time.localtime(value)),
    }
    image = base64.b64encode(picture.read_bytes()).decode() if picture is not None else ""
    values = {
        "head": head,
        "rows": rows,
        "notes": notes(rows, str(head["baseline"])),
        "collectives": list(dict.fromkeys(name for row in rows for name in row.comm or {})),
        "image": image,
        "changed": any(row.change for row in rows),
        "published": any(row.published for row in rows),
    }
    write_text(path, html("bench_report.html.j2", filters, values))
