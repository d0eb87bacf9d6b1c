"""Templates of launch files. Nothing reaches a shell but through a quoting filter: an unquoted value is an error."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import jinja2

from ostrain.environment import NAME, Expand

_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")


class Quoted(str):
    """Text that is safe where it stands in a shell script."""


def sh(value: str) -> Quoted:
    """One shell word that arrives as ``value``, byte for byte. ValueError: a NUL, which no argument can hold."""
    if "\0" in value:
        raise ValueError("a NUL character cannot stand in a shell word")
    return Quoted(shlex.quote(value))


def expand(value: str) -> Quoted:
    """One shell word in which ``$NAME`` and ``${NAME}`` are replaced (unset: by nothing), all else is literal."""
    words, end = [], 0
    for match in _VARIABLE.finditer(value):
        if match.start() > end:
            words.append(sh(value[end : match.start()]))
        words.append(Quoted(f'"${{{match[1] or match[2]}-}}"'))
        end = match.end()
    if end < len(value) or not words:
        words.append(sh(value[end:]))
    return Quoted("".join(words))


def path(value: str) -> Quoted:
    """One shell word for a path; a leading ``~/`` is the node's home."""
    return Quoted(f'"$HOME"/{sh(value[2:])}') if value.startswith("~/") else sh(value)


def env_value(value: str | Expand) -> Quoted:
    """The word for an environment value as jobs write it."""
    return expand(value.expand) if isinstance(value, Expand) else sh(value)


def name(value: str) -> Quoted:
    """The name of a variable. ValueError for anything else."""
    if not NAME.match(value):
        raise ValueError(f"{value!r} is no variable's name")
    return Quoted(value)


def comment(value: str) -> Quoted:
    """Text for a comment or a message: what could end it or mean something to a shell becomes ``_``."""
    return Quoted(re.sub(r"[^\w .,:;@%+=/()-]", "_", value))


_OPTION = re.compile(r"[A-Za-z0-9_.,:;@%+=/()\[\]*&|!~^?<>-]+\Z")


def option(value: str) -> Quoted:
    """A word of a ``#SBATCH`` line, or of a command in it, that nothing takes apart. ValueError for any other."""
    if not _OPTION.match(value):
        raise ValueError(f"{value!r} cannot stand in an #SBATCH line")
    return Quoted(value)


def _checked(value: Any) -> Any:
    if isinstance(value, Quoted) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise TypeError(f"a template prints {value!r} without a quoting filter")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(files("templates"))),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_checked,
    )
    environment.filters = {
        "sh": sh, "path": path, "value": env_value, "name": name, "comment": comment, "option": option
    }  # fmt: skip
    return environment


class Templates:
    """Compiled templates by name."""

    def __init__(self) -> None:
        self._environment = _environment()

    def render(self, template: str, **values: Any) -> str:
        """The text of ``templates/<template>``."""
        return self._environment.get_template(template).render(**values)


def html(template: str, filters: Mapping[str, Callable[..., str]], values: Mapping[str, Any]) -> str:
    """An HTML page from a template of ``templates/``; every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(files("templates"))),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters = {**environment.filters, **filters}
    return environment.get_template(template).render(**values)
