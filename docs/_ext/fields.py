"""Fields of named tuples are told once: where they are described."""

import importlib
import pkgutil
from collections.abc import Iterator

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.pycode import ModuleAnalyzer

import pyro_gebm

ALIAS = "Alias for field number"  # what Python says of a field that nobody has described
silent: set[int] = set()


def _named_tuples() -> Iterator[type]:
    for found in pkgutil.walk_packages(pyro_gebm.__path__, "pyro_gebm."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        for thing in vars(module).values():
            if isinstance(thing, type) and issubclass(thing, tuple) and hasattr(thing, "_fields"):
                yield thing


def _find_silent(app: Sphinx, config: Config) -> None:
    """Fields without a text of their own, in classes whose docstring describes them."""
    for kind in set(_named_tuples()):
        if "Attributes:" not in (kind.__doc__ or ""):
            continue
        described = ModuleAnalyzer.for_module(kind.__module__).find_attr_docs()
        for name in kind._fields:  # type: ignore[attr-defined]
            if (kind.__qualname__, name) not in described:
                silent.add(id(vars(kind)[name]))


def _skip(
    app: Sphinx, what: str, name: str, value: object, skip: bool, options: object
) -> bool | None:
    return True if id(value) in silent else None


def _drop_alias(
    app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]
) -> None:
    if lines and lines[0].startswith(ALIAS):
        lines.clear()


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", _find_silent)
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-docstring", _drop_alias, priority=300)
    return {"parallel_read_safe": True}
