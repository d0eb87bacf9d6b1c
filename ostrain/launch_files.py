"""The files that start a node's workers: launch.sh of each launcher, and what it needs beside itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ostrain.plan import PlanFile
from ostrain.templating import Templates

RANK_TABLE = "hccl.json"


@dataclass
class LaunchFiles:
    """Renders them. What is the same on every node is rendered once; a plan of many nodes holds it once.

    rank_table: text of the table, for the launcher that reads one.
    """

    templates: Templates
    launcher: str
    rank_table: str = ""
    common: tuple[PlanFile, ...] | None = field(default=None, init=False)

    def files(self, values: dict[str, Any]) -> tuple[PlanFile, ...]:
        """The files of a node. values: as the templates name them; ``devices`` is empty without NPUs."""
        launch = PlanFile("launch.sh", self.templates.render(f"{self.launcher}.sh.j2", **values), 0o755)
        if self.common is None:
            self.common = tuple(self._common(values))
        return (launch, *self.common)

    def _common(self, values: dict[str, Any]) -> Iterator[PlanFile]:
        if self.launcher == "msrun":  # it starts, names and binds the workers itself
            return
        yield PlanFile(
            "worker.sh", self.templates.render("worker.sh.j2", **values, scheduler=self.launcher == "mpirun"), 0o755
        )
        if values["bind_cores"]:
            yield PlanFile("bind.sh", self.templates.render("bind.sh.j2"))
        if self.rank_table:
            yield PlanFile(RANK_TABLE, self.rank_table)
