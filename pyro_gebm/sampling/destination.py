"""The files of a run that goes to disk."""

import os
from pathlib import Path

UNFINISHED = ".unfinished"


def check_store(store: str | Path) -> Path:
    """The path, or a ``ValueError`` if no run can be written there."""
    given: object = store
    if not isinstance(given, str | os.PathLike):
        raise ValueError(f'store: expected a path such as "draws.nc"; got {given!r}')
    path = Path(store)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"store: expected a file in a folder that exists; got {str(path)!r}")
    left = [p for p in path.parent.iterdir() if _belongs(p.name, path.name)]
    if left:
        raise ValueError(
            f"store: expected no unfinished run beside it; got {str(min(left))!r}, which may still "
            "be written; read it with pyro_gebm.inference_data.load, move or remove it"
        )
    return path


def unfinished_path(path: Path, part: int | None = None) -> Path:
    """Where a run is written before it is whole, or a process's part of it."""
    middle = "" if part is None else f".part{part}"
    return path.with_name(path.name + middle + UNFINISHED)


def _belongs(name: str, store: str) -> bool:
    middle = name.removeprefix(store).removesuffix(UNFINISHED)
    return (
        name.startswith(store)
        and name.endswith(UNFINISHED)
        and (not middle or middle.startswith(".part"))
    )
