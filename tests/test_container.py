"""The file of a training's state: what goes in comes out, and what else is refused."""

import collections
import hashlib
import io
import os
import pickle
import random

import numpy as np
import pytest
import torch
from stand_in import StandIn

from pyro_gebm.training import container
from pyro_gebm.training.checkpoints import Checkpoints
from pyro_gebm.training.container import CheckpointError

MAGIC = container.MAGIC["training"]


def test_everything_that_can_be_written_can_be_read(tmp_path):
    # One of each type; a type that torch.load refuses would make checkpoints nobody can load.
    leaves = [
        None,
        True,
        10**30,
        0.1,
        1j,
        "a",
        b"b",
        torch.ones(2),
        torch.nn.Parameter(torch.ones(1)),
    ]
    leaves += [torch.Size([2]), torch.float64, torch.device("cpu")]
    nests = [{}, collections.OrderedDict(a=1), collections.Counter("ab"), [1], (1,), {1, 2}]
    assert {type(leaf) for leaf in leaves} == container.LEAVES
    assert {type(nest) for nest in nests} == container.NESTS
    container.write(tmp_path / "a.pt", {"all": [*leaves, *nests]}, "training")
    read = container.read(tmp_path / "a.pt", "training")["all"]
    for written, found in zip([*leaves, *nests], read, strict=True):
        assert type(found) is type(written)
        assert torch.equal(found, written) if torch.is_tensor(found) else found == written


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (np.float64(1), r"content\['state'\]\['a'\]\[0\]: .*got numpy.float64"),
        (np.ones(2), "numpy.ndarray"),
        (torch.nn.Linear(1, 1), "Linear"),
        (collections.defaultdict(int), "defaultdict"),
        (StandIn, "type"),
        ({np.int64(3): 1}, "a key of .*int64"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path, value, told):
    with pytest.raises(ValueError, match=told):
        Checkpoints(tmp_path).save({"a": [value]}, 1, {})
    assert list(tmp_path.iterdir()) == []


def refused(path, content):
    path.write_bytes(content)
    try:
        Checkpoints.load(path)
    except CheckpointError:
        return True
    return False


def test_every_flipped_bit_and_every_missing_end_is_noticed(tmp_path):
    path = Checkpoints(tmp_path).save(StandIn().state_dict(), 1, {"held_out_bound": 1.0})
    whole = path.read_bytes()
    header = range(8 * (len(MAGIC) + 65))
    bits = {*random.Random(0).sample(range(8 * len(whole)), 300), *header}
    noticed = 0
    for bit in bits:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        noticed += refused(path, bytes(flipped))
    assert noticed == len(bits)
    ends = [0, 1, len(MAGIC), len(MAGIC) + 64, len(MAGIC) + 65, len(whole) // 2, len(whole) - 1]
    assert [end for end in ends if not refused(path, whole[:end])] == []
    assert refused(path, whole + b"\0") and not refused(path, whole)


class MakesFolder:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("by_torch", [False, True])
def test_code_in_a_file_is_never_run(tmp_path, by_torch, signed):
    buffer = io.BytesIO()
    dump = torch.save if by_torch else lambda value, file: pickle.dump(value, file, protocol=2)
    dump({"state": MakesFolder(tmp_path / "made"), "step": 1, "metrics": {}}, buffer)
    content = buffer.getvalue()
    header = MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n"
    assert refused(tmp_path / "checkpoint-00000001.pt", header + content if signed else content)
    assert not (tmp_path / "made").exists()
    buffer.seek(0)
    torch.load(buffer, weights_only=False) if by_torch else pickle.load(buffer)
    assert (tmp_path / "made").exists()  # the code that was refused does work


def test_a_model_is_no_checkpoint_of_a_training(tmp_path):
    container.write(tmp_path / "a.pt", {"state": {}}, "model")
    with pytest.raises(CheckpointError, match=r"training checkpoint; got a model .*load"):
        Checkpoints.load(tmp_path / "a.pt")
    container.write(tmp_path / "a.pt", {"state": {}}, "training")
    with pytest.raises(CheckpointError, match="expected the parts"):
        Checkpoints.load(tmp_path / "a.pt")
