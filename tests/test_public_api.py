"""The public API is what tests/public_api.txt says: no name or parameter changes by accident.

python tests/test_public_api.py --write    # after a change on purpose
"""

import argparse
import difflib
import enum
import importlib
import inspect
import pkgutil
from pathlib import Path

import pyro_gebm

LIST = Path(__file__).parent / "public_api.txt"

NOT_LIBRARY = {"cli"}
"""The command line's promises are its commands, which docs/reference shows."""

ROOMS = ["", *sorted(room.name for room in pkgutil.iter_modules(pyro_gebm.__path__))]
ROOMS = [room for room in ROOMS if not room.startswith("_") and room not in NOT_LIBRARY]
"""Modules whose exports are promises; "" is ``pyro_gebm`` itself."""

ADVICE = """
The public API is not what tests/public_api.txt lists.
- Not on purpose? Then a caller of yesterday breaks: put the name or parameter back.
- Removed or changed on purpose? Deprecate it first (.github/CONTRIBUTING.md), say so in
  CHANGELOG.md, and write the list anew.
- Added on purpose? Write the list anew: from now on it is a promise.
    python tests/test_public_api.py --write
"""


def exports(module):
    """The names that a module promises."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return sorted(listed)
    own = (n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__)
    return sorted(name for name in own if not name.startswith("_"))


def parameters(function):
    """A call's parameters with their simple defaults, without annotations, which are mypy's."""
    shown = []
    starred = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            shown.append("*")
        starred = starred or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        shown.append(_parameter(parameter))
    return "(" + ", ".join(shown) + ")"


def _parameter(parameter):
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    if parameter.default is parameter.empty:
        return stars + parameter.name
    default = parameter.default
    simple = isinstance(default, str | int | float | bool | None | tuple) and not isinstance(
        default, enum.Enum
    )
    return f"{parameter.name}={default!r}" if simple else f"{parameter.name}=..."


def describe(name, thing):
    """Lines for a public thing: its call, and for a class its public methods and fields."""
    if inspect.isclass(thing):
        yield f"{name}{parameters(thing)}" if _is_callable(thing) else name
        for key, member in sorted(members(thing).items()):
            if key.startswith("_"):
                continue
            if isinstance(member, staticmethod | classmethod):
                yield f"{name}.{key}{parameters(member.__get__(None, thing))}"
            elif inspect.isfunction(member):
                yield f"{name}.{key}{parameters(member)}"
            elif isinstance(member, property):
                yield f"{name}.{key}"
    elif callable(thing) and not _is_alias(thing):
        yield f"{name}{parameters(thing)}"
    else:
        yield name


def members(kind):
    """What a class has of its own or from classes of the package, which may well be private."""
    ours = [base for base in reversed(kind.__mro__) if base.__module__.startswith("pyro_gebm")]
    return {key: member for base in ours for key, member in vars(base).items()}


def _is_callable(kind):
    try:
        inspect.signature(kind)
    except (TypeError, ValueError):
        return False
    # A container that comes from elsewhere, such as ArviZ's, has another signature in each version.
    return kind.__module__.startswith("pyro_gebm")


def _is_alias(thing):
    return not (inspect.isfunction(thing) or inspect.isbuiltin(thing))


def public_api():
    """The list as it is now."""
    lines = []
    for room in ROOMS:
        path = f"pyro_gebm.{room}" if room else "pyro_gebm"
        module = importlib.import_module(path)
        for name in exports(module):
            thing = getattr(module, name)
            elsewhere = not getattr(thing, "__module__", "pyro_gebm").startswith("pyro_gebm")
            full = f"{path}.{name}"
            lines += [full] if elsewhere else describe(full, thing)
    return lines


def test_the_public_api_is_what_is_listed():
    listed = LIST.read_text().splitlines()
    changes = list(difflib.unified_diff(listed, public_api(), "listed", "now", n=0, lineterm=""))
    assert not changes, "\n".join([ADVICE, *changes])


def test_changes_are_seen(monkeypatch):
    def sample(model, *, kernel="NUTS"):
        """Another default, fewer parameters."""

    before = public_api()
    sample.__module__ = "pyro_gebm.sampling.sample"
    monkeypatch.setattr(pyro_gebm, "sample", sample)
    monkeypatch.setattr(pyro_gebm, "__all__", [n for n in pyro_gebm.__all__ if n != "compare"])
    gone = set(before) - set(public_api())
    assert {line.partition("(")[0] for line in gone} == {"pyro_gebm.sample", "pyro_gebm.compare"}
    assert "pyro_gebm.sample(model, *, kernel='NUTS')" in public_api()


def test_every_export_exists_and_is_documented():
    for room in ROOMS:
        module = importlib.import_module(f"pyro_gebm.{room}" if room else "pyro_gebm")
        for name in exports(module):
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                assert inspect.getdoc(thing), f"{module.__name__}.{name} has no docstring"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", required=True)
    parser.parse_args()
    LIST.write_text("\n".join(public_api()) + "\n")
