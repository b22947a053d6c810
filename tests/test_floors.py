"""The floors of the house: who may import whom, who may print, how long things get."""

import ast
from pathlib import Path

import pytest

import pyro_gebm

PACKAGE = Path(pyro_gebm.__file__).parent

FLOORS = {
    "cli": 5,
    "plots": 4,
    "report": 4,
    "comparison": 4,
    "gan": 4,
    "inverse": 4,
    "presets": 4,
    "training": 3,
    "sampling": 3,
    "metrics": 3,
    "base": 2,
    "model": 2,
    "flows": 2,
    "nets": 1,
    "objectives": 1,
    "mcmc": 1,
    "operators": 1,
    "data": 1,
    "inference_data": 1,
    "_types": 0,
    "_files": 0,
    "_modes": 0,
    "_checks": 0,
    "_supports": 0,
    "_compiler": 0,
    "_version": 0,
}
SAME_FLOOR = {("model", "base"), ("flows", "base")}
NEVER = {("model", "mcmc")}
PUBLIC_API_USERS = {"cli"}  # above everything that __init__ imports
ARVIZ_ROOM = "inference_data"
PRINTING_ROOM = "cli"
TOP_LEVEL = {"__init__", "__main__"}

MAX_FILE_LINES = 299
MAX_FUNCTION_LINES = 60


def room_of(path):
    """ "mcmc" for mcmc/hmc.py, "model" for model.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def modules():
    paths = sorted(PACKAGE.rglob("*.py"))
    return [p for p in paths if not (p.parent == PACKAGE and p.stem in TOP_LEVEL)]


def imported_names(tree):
    """Every dotted name that is imported, at any depth of the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            if prefix in ("pyro_gebm", "."):
                yield from (f"{prefix}.{alias.name}" for alias in node.names)
            else:
                yield prefix


def violations(room, source):
    """What ``source``, a module of ``room``, does against the rules."""
    if room not in FLOORS:
        return [f"{room}: unknown room; give it a floor"]
    found = []
    tree = ast.parse(source)
    for name in imported_names(tree):
        if name.startswith("."):
            found.append(f"{room}: relative import {name}")
        if name.split(".")[0].startswith("arviz") and room != ARVIZ_ROOM:
            found.append(f"{room} imports {name}")
        if name.split(".")[0] == "pyro_gebm":
            found += _against_floors(room, name)
    prints = any(isinstance(n, ast.Call) and _is_name(n.func, "print") for n in ast.walk(tree))
    if prints and room != PRINTING_ROOM:
        found.append(f"{room} prints")
    return found


def _against_floors(room, name):
    other = name.split(".")[1] if "." in name else ""
    if other == room:
        return []
    if room in PUBLIC_API_USERS and other in {"", *pyro_gebm.__all__}:
        return []
    if other not in FLOORS:
        return [f"{room} imports {name}: not a room"]
    allowed = FLOORS[other] < FLOORS[room] or (room, other) in SAME_FLOOR
    return [] if allowed and (room, other) not in NEVER else [f"{room} imports {other}"]


def _is_name(node, name):
    return isinstance(node, ast.Name) and node.id == name


def code_lines(function):
    """Lines from ``def`` to the end, without the docstring."""
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def long_functions(source):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        f"{node.name}: {code_lines(node)} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, functions) and code_lines(node) > MAX_FUNCTION_LINES
    ]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_module_keeps_to_its_floor(path):
    assert violations(room_of(path), path.read_text()) == []


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_sizes(path):
    source = path.read_text()
    assert len(source.splitlines()) <= MAX_FILE_LINES
    assert long_functions(source) == []


def test_every_floor_below_the_top_is_inhabited():
    # A renamed package would make the tests above pass for want of modules.
    rooms = {"mcmc", "model", "base", "sampling", "nets", "inference_data"}
    assert {room_of(path) for path in modules()} >= rooms


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("mcmc", "from pyro_gebm.model import GEBM"),
        ("mcmc", "from pyro_gebm import model"),
        ("mcmc", "from pyro_gebm import GEBM"),
        ("mcmc", "import pyro_gebm"),
        ("mcmc", "from pyro_gebm.nets import MLPEnergy"),
        ("mcmc", "from pyro_gebm.sampling.target import Target"),
        ("mcmc", "from pyro_gebm.inference_data import build"),
        ("inference_data", "from pyro_gebm.mcmc.draws import Draws"),
        ("model", "from pyro_gebm.mcmc import run"),
        ("base", "from pyro_gebm.model import GEBM"),
        ("_types", "from pyro_gebm._checks import check_count"),
        ("metrics", "def f():\n    from pyro_gebm.sampling import sample"),
        ("metrics", "from ..model import GEBM"),
        ("metrics", "from . import scores"),
        ("sampling", "import arviz as az"),
        ("plots", "from arviz_plots import plot_rank_dist"),
        ("training", "def f():\n    print('step')"),
        ("cli", "from pyro_gebm import no_such_thing"),
        ("attic", "import torch"),
    ],
)
def test_the_rules_catch(room, source):
    assert len(violations(room, source)) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("model", "from pyro_gebm.base import Base"),
        ("sampling", "from pyro_gebm import inference_data"),
        (
            "mcmc",
            "from pyro_gebm.mcmc.kernel import Info\nfrom pyro_gebm._types import PotentialFn",
        ),
        ("inference_data", "import arviz as az"),
        ("cli", "print('done')"),
        ("cli", "from pyro_gebm import GEBM, sample"),
    ],
)
def test_the_rules_let_pass(room, source):
    assert violations(room, source) == []


def test_long_functions_are_found():
    body = "\n".join(["    x = 1"] * MAX_FUNCTION_LINES)
    assert long_functions(f"def f():\n{body}") == [f"f: {MAX_FUNCTION_LINES + 1} lines"]
    docstring = '    """' + "\n" * 80 + '    """'
    assert long_functions(f"def f():\n{docstring}\n    return 1") == []
