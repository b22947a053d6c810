"""The wheel: built without a network from the source distribution, whole, and it installs clean."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import pyro_gebm

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pyro_gebm"


def run(*command, cwd, **environment):
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def sources():
    return (path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".typed"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built by ``python -m build`` with the tools that are installed: no registry is asked."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    # A copy, for building leaves folders behind; of what is under version control only.
    names = ["pyproject.toml", "README.md", "LICENSE"]
    names += [str(path.relative_to(ROOT)) for path in sources()]
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), cwd=source)
    (built,) = folder.glob("*.whl")
    assert list(folder.glob("*.tar.gz")), "the source distribution"
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    held = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    expected = {str(path.relative_to(ROOT)) for path in sources()}
    assert held == expected


def test_the_wheel_says_what_it_is(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = archive.read(name).decode()
    assert f"\nVersion: {pyro_gebm.__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nDescription-Content-Type: text/markdown\n" in metadata
    assert any(n.endswith("licenses/LICENSE") for n in archive.namelist())


def test_the_wheel_installs_and_runs_outside_of_the_tree(wheel, tmp_path):
    target = tmp_path / "site"
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target")
    run(sys.executable, *install, str(target), str(wheel), cwd=tmp_path)
    code = "import pyro_gebm, sys; print(pyro_gebm.__file__, pyro_gebm.__version__)"
    told = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(target)).split()
    assert Path(told[0]).is_relative_to(target) and told[1] == pyro_gebm.__version__
    command = target / "bin" / "pyro-gebm"
    told = run(sys.executable, str(command), "--version", cwd=tmp_path, PYTHONPATH=str(target))
    assert told.split() == ["pyro-gebm", pyro_gebm.__version__]
