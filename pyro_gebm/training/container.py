"""A file of plain data and tensors that is whole or refused: hashed, atomic, never a pickle."""

import hashlib
import io
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyro_gebm._files import write_whole

Kind = Literal["model", "training"]
"""A model (``pyro_gebm.save``), or the state of a training that goes on."""

MAGIC: dict[Kind, bytes] = {
    "model": b"pyro_gebm checkpoint 1 sha256 ",
    "training": b"pyro_gebm training state 1 sha256 ",
}
"""First bytes of a file; then 64 hexadecimal digits, a line feed, and what torch.save wrote."""

READER: dict[Kind, str] = {
    "model": "pyro_gebm.load reads it",
    "training": "Checkpoints.load reads it",
}

LONGEST_HEADER = max(map(len, MAGIC.values())) + 65

LEAVES = {
    *(type(None), bool, int, float, complex, str, bytes),
    *(Tensor, nn.Parameter, torch.Size, torch.dtype, torch.device),
}
NESTS = {dict, OrderedDict, Counter, list, tuple, set}


class CheckpointError(RuntimeError):
    """The file is not a whole checkpoint of this package; the message says why."""


def write(path: str | Path, content: dict[str, Any], kind: Kind) -> None:
    """Write ``content`` to ``path``; the file appears whole or not at all.

    Args:
        path: the file; an older one stays as it was if the write fails or is killed.
        content: numbers, text, tensors, and dicts, lists and tuples of them.
        kind: what the file is, so that it is not taken for another.

    Raises:
        ValueError: the content holds something that ``read`` would refuse.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(Path(folder) / "a.pt", {"step": 3, "w": torch.ones(2)}, "training")
        ...     read(Path(folder) / "a.pt", "training")
        {'step': 3, 'w': tensor([1., 1.])}
    """
    _check_plain("content", content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    saved = buffer.getbuffer()
    digest = hashlib.sha256(saved).hexdigest().encode()
    write_whole(Path(path), MAGIC[kind] + digest + b"\n", saved)


def read(path: str | Path, kind: Kind, parts: Collection[str] = ()) -> dict[str, Any]:
    """Read what ``write`` wrote, its tensors on the CPU.

    Args:
        path: the file.
        kind: what it is to be.
        parts: keys that its content must have.

    Raises:
        CheckpointError: the file is damaged, of another kind, or none of this package.
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as file:
        header, content = file.readline(LONGEST_HEADER), file.read()
    _check_kind(Path(path), header, kind)
    if header != MAGIC[kind] + hashlib.sha256(content).hexdigest().encode() + b"\n":
        raise CheckpointError(f"{path}: damaged (its sha256 does not match); take another copy")
    try:
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the sum is right, so someone made this on purpose
        raise CheckpointError(f"{path}: holds more than plain data; none of it was run") from error
    if not isinstance(saved, dict) or not set(parts).issubset(saved):
        raise CheckpointError(f"{path}: expected the parts {sorted(parts)}; got something else")
    return saved


def _check_kind(path: Path, header: bytes, kind: Kind) -> None:
    found = [name for name, magic in MAGIC.items() if header.startswith(magic)]
    if found == [kind]:
        return
    if found:
        raise CheckpointError(
            f"{path}: expected a {kind} checkpoint; got a {found[0]} checkpoint; {READER[found[0]]}"
        )
    raise CheckpointError(
        f"{path}: not a {kind} checkpoint of pyro_gebm (pickles are never loaded), or damaged at "
        "its start"
    )


def _check_plain(name: str, value: object) -> None:
    """Refuse now what the reader would: a checkpoint that nobody can load is none."""
    # The very types: a subclass is written as code to be imported.
    if type(value) in LEAVES:
        return
    if type(value) not in NESTS:
        raise ValueError(
            f"{name}: expected plain data (numbers, text, tensors, and dicts, lists and tuples of "
            f"them); got {type(value).__module__}.{type(value).__qualname__}; convert it first"
        )
    for key, part in _entries(value):
        _check_plain(f"a key of {name}", key)
        _check_plain(f"{name}[{key!r}]", part)


def _entries(nest: Any) -> Iterable[tuple[Any, Any]]:
    entries: Iterable[tuple[Any, Any]] = nest.items() if isinstance(nest, dict) else enumerate(nest)
    return entries
