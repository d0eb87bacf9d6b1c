"""What a person is told when something goes wrong: what, where, why, what next."""

from __future__ import annotations

from collections.abc import Sequence


class OstrainError(Exception):
    """An error meant for people. Printed in up to four lines, never as a traceback (unless ``-vv``).

    what: one sentence, what went wrong.
    where: ``file:line:column``, or ``node node-1``, or ``node node-1 rank 3``; empty where there is no place.
    why: the cause, as far as known.
    next_step: what to do about it; a command wherever there is one.
    exit_code: one of ``ostrain.states.ExitCode``.
    """

    def __init__(self, what: str, *, where: str = "", why: str = "", next_step: str = "", exit_code: int = 1) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.why = why
        self.next_step = next_step
        self.exit_code = exit_code

    def __str__(self) -> str:
        lines = [f"error: {self.what}"]
        for label, text in (("where", self.where), ("why", self.why), ("next", self.next_step)):
            if text:
                lines.append(f"  {label}: {text}")
        return "\n".join(lines)


class SpecError(OstrainError):
    """One or more problems in a job, recipe or inventory file, all found at once. ``problems`` are rendered texts."""

    def __init__(self, problems: Sequence[str], *, what: str = "", next_step: str = "") -> None:
        count = len(problems)
        super().__init__(
            what or f"{count} problem{'s' if count != 1 else ''} in the job", next_step=next_step, exit_code=2
        )
        self.problems = list(problems)

    def __str__(self) -> str:
        text = "\n\n".join(self.problems) + f"\n\nerror: {self.what}"
        return text + (f"\n  next: {self.next_step}" if self.next_step else "")
