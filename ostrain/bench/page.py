"""The report as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from ostrain.bench.store import write_text
from ostrain.bench.summary import Row
from ostrain.bench.text import bytes_text, change_text, compile_text, notes, published_text, seconds_text, share_text


def write_page(head: Mapping[str, Any], rows: Sequence[Row], picture: Path | None, path: Path) -> None:
    """``report.html``: head (``Session.describe``), tables and the picture, if there is one."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(files("templates"))),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters = {
        **environment.filters,
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
    text = environment.get_template("bench_report.html.j2").render(
        head=head,
        rows=rows,
        notes=notes(rows, str(head["baseline"])),
        collectives=list(dict.fromkeys(name for row in rows for name in row.comm or {})),
        image=image,
        changed=any(row.change for row in rows),
        published=any(row.published for row in rows),
    )
    write_text(path, text)
