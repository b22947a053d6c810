"""Checkpoints: what comes back, what is refused, and what a broken save leaves behind."""

import errno
import hashlib
import io
import multiprocessing
import os
import pickle
import random
import resource
import signal
import stat
import time

import pytest
import torch
from helpers import small_gebm
from pyro import distributions as dist
from torch import nn

import pyro_gebm as pg
from pyro_gebm.nets import MLPEnergy, MLPGenerator
from pyro_gebm.training import container

MAGIC = b"pyro_gebm checkpoint 1 sha256 "  # as it stands in files that people have
HEADER = len(MAGIC) + 65


def built_in(prior=None, width=4):
    prior = prior or pg.StandardNormal(2)
    generator = MLPGenerator(prior.dim, (3,), hidden=(width,), activation="gelu")
    gebm = pg.GEBM(pg.Base(generator, prior), MLPEnergy((3,), hidden=(width, width)))
    with torch.no_grad():
        gebm.log_partition.fill_(0.1)
    return gebm


def same(gebm, other):
    state, loaded = gebm.state_dict(), other.state_dict()
    return state.keys() == loaded.keys() and all(
        torch.equal(value, loaded[name]) and value.dtype == loaded[name].dtype
        for name, value in state.items()
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "gebm.pt"


# --- round trips ------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("prior", [pg.StandardNormal(2), pg.UniformPrior(3, -0.7, 1.3)])
def test_round_trip_is_bit_equal(path, prior, dtype):
    gebm = built_in(prior).to(dtype).train()
    pg.save(gebm, path)
    loaded = pg.load(path)
    assert same(gebm, loaded)
    assert gebm.training and not any(module.training for module in loaded.modules())
    assert all(p.requires_grad for p in loaded.parameters())
    assert loaded.base.generator.spec == gebm.base.generator.spec
    assert loaded.energy.spec == gebm.energy.spec
    assert type(loaded.base.latent_prior) is type(prior)
    z = 2 * torch.randn(50, prior.dim, dtype=dtype)  # in part outside the box
    assert torch.equal(gebm.potential_fn(z), loaded.potential_fn(z))


def test_a_second_save_takes_the_place_of_the_first(path):
    first, second = built_in(), built_in()
    pg.save(first, str(path))
    pg.save(second, str(path))
    assert same(second, pg.load(str(path))) and not same(first, second)
    assert list(path.parent.iterdir()) == [path]


def test_custom_networks_are_asked_for_by_name_and_then_work(path):
    gebm = small_gebm()
    pg.save(gebm, path)
    fresh = small_gebm(seed=1)
    generator, energy = fresh.base.generator, fresh.energy
    with pytest.raises(ValueError, match=r"^generator: .*load\(\.\.\., generator=\.\.\.\)"):
        pg.load(path, energy=energy)
    with pytest.raises(ValueError, match=r"^energy: .*load\(\.\.\., energy=\.\.\.\)"):
        pg.load(path, generator=generator)
    assert not same(gebm, fresh)
    loaded = pg.load(path, generator=generator, energy=energy)
    assert same(gebm, loaded) and loaded.energy is energy


def test_a_network_without_layers_counts_as_given(path):
    gebm = pg.GEBM(pg.Base(nn.Sequential(), pg.StandardNormal(3)), MLPEnergy((3,)))
    pg.save(gebm, path)
    assert same(gebm, pg.load(path, generator=nn.Sequential()))


def test_a_network_of_another_architecture_is_refused(path):
    pg.save(small_gebm(), path)
    with pytest.raises(ValueError, match="do not fit"):
        pg.load(path, generator=nn.Linear(2, 3), energy=small_gebm().energy)


def test_another_prior_is_asked_for_and_then_works(path):
    prior = pg.LatentPrior(dist.Laplace(torch.zeros(2), 1.0).to_event(1))
    gebm = built_in(prior)
    pg.save(gebm, path)
    with pytest.raises(ValueError, match=r"^latent_prior: .*load\(\.\.\., latent_prior="):
        pg.load(path)
    loaded = pg.load(path, latent_prior=prior)
    z = torch.randn(5, 2)
    assert same(gebm, loaded) and torch.equal(gebm.potential_fn(z), loaded.potential_fn(z))


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_the_file_has_the_permissions_of_any_new_file(path, mask):
    before = os.umask(mask)
    try:
        pg.save(built_in(), path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


# --- refusals ------------------------------------------


class MakesFolder:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def pickled(value):
    return pickle.dumps(value, protocol=2)  # of a later one torch.load warns


def torch_saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def signed(content):
    """Content under a header that is right for it."""
    return MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def torch_loaded(content):
    return torch.load(io.BytesIO(content), weights_only=False)


@pytest.mark.parametrize("wrap", [bytes, signed])
@pytest.mark.parametrize(("dump", "run"), [(pickled, pickle.loads), (torch_saved, torch_loaded)])
def test_code_in_a_file_is_never_run(path, tmp_path, dump, run, wrap):
    folder = tmp_path / "made"
    content = dump({"state": MakesFolder(folder)})
    path.write_bytes(wrap(content))
    with pytest.raises(pg.CheckpointError, match=r"gebm\.pt: "):
        pg.load(path)
    assert not folder.exists()
    run(content)  # the code that was refused does work
    assert folder.exists()


@pytest.mark.parametrize("value", [{}, [1, 2], {"state": {}, "energy": ("mlp_energy", {})}])
def test_other_data_under_a_right_header_are_refused(path, value):
    path.write_bytes(signed(torch_saved(value)))
    with pytest.raises(pg.CheckpointError, match="expected the parts"):
        pg.load(path)


def refused(path, content):
    path.write_bytes(content)
    try:
        pg.load(path)
    except pg.CheckpointError:
        return True
    return False


def test_every_flipped_bit_is_noticed(path):
    pg.save(built_in(), path)
    whole = path.read_bytes()
    chosen = random.Random(0).sample(range(8 * len(whole)), 300)
    in_header = range(8 * HEADER)
    assert sum(bit in in_header for bit in chosen) > 0
    noticed = 0
    for bit in {*chosen, *in_header}:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        noticed += refused(path, bytes(flipped))
    assert noticed == len({*chosen, *in_header})
    assert not refused(path, whole)


def test_every_missing_end_is_noticed(path):
    pg.save(built_in(), path)
    whole = path.read_bytes()
    size = len(whole)
    lengths = [0, 1, len(MAGIC), HEADER - 1, HEADER, HEADER + 1, size // 2, size - 1]
    assert [length for length in lengths if not refused(path, whole[:length])] == []
    assert refused(path, whole + b"\0")


def test_the_checkpoint_of_a_training_is_no_model(path):
    container.write(path, {"state": {}}, "training")
    with pytest.raises(pg.CheckpointError, match=r"model checkpoint; got a training checkpoint"):
        pg.load(path)


class WithNote(nn.Linear):
    def get_extra_state(self):
        return {"note": MakesFolder("x")}


def test_a_state_that_could_not_be_loaded_is_refused_at_once(path):
    gebm = pg.GEBM(pg.Base(WithNote(2, 3), pg.StandardNormal(2)), MLPEnergy((3,)))
    with pytest.raises(ValueError, match=r"_extra_state'\]\['note'\]: .*got .*MakesFolder"):
        pg.save(gebm, path)
    assert list(path.parent.iterdir()) == []


def test_a_missing_file_is_an_os_error(path):
    with pytest.raises(FileNotFoundError):
        pg.load(path)
    with pytest.raises(FileNotFoundError):
        pg.save(built_in(), path / "no" / "folder.pt")


# --- broken saves ------------------------------------------


def test_a_full_disk_leaves_the_old_file(path, monkeypatch):
    gebm = built_in()
    pg.save(gebm, path)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "fsync", full)
        pg.save(built_in(), path)
    assert same(gebm, pg.load(path))
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_stops_half_way_leaves_the_old_file(path):
    gebm = built_in()
    pg.save(gebm, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            pg.save(built_in(), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert same(gebm, pg.load(path))
    assert list(path.parent.iterdir()) == [path]


def save_for_ever(path):
    torch.set_num_threads(1)
    gebm = built_in(width=512)
    while True:
        with torch.no_grad():
            gebm.log_partition += 1
        pg.save(gebm, path)


def test_a_killed_save_leaves_a_whole_file(path):
    # A server that has imported torch once starts each process in a moment.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pyro_gebm"])
    pauses = random.Random(0)
    for _ in range(8):
        path.unlink(missing_ok=True)
        process = context.Process(target=save_for_ever, args=(path,), daemon=True)
        process.start()
        while not path.exists():
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(pauses.uniform(0.0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert pg.load(path).log_partition > 1
