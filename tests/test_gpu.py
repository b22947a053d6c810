"""On a CUDA device: recorded potentials, every kernel against exact moments, training, resume.

The rest of the suite runs on the CPU alone; these tests skip where there is no such device.
"""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import quiet_sample
from torch import nn

import pyro_gebm as pg
from pyro_gebm.data import ImageLoader, sample_toy
from pyro_gebm.mcmc import KERNELS as KERNELS_OF
from pyro_gebm.mcmc import NUTS, CapturedPotential, Tuning, masked_nuts, run
from pyro_gebm.mcmc import draws as draws_module
from pyro_gebm.mcmc.draws import Buffers
from pyro_gebm.mcmc.gradients import FIRST_CALLS, value_and_grad
from pyro_gebm.mcmc.random import GPU_BLOCK, Streams, normal
from pyro_gebm.nets import MLPEnergy, MLPGenerator
from pyro_gebm.presets import load_preset

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

KERNELS = ["NUTS", "HMC", "ChEES", "MALA", "IMH"]  # the exact ones
MEAN, VARIANCE = 0.5, 0.5


class Quadratic(nn.Module):
    """E(x) = |x|²/2 - Σ x: with a standard normal base the model is N(1/2, 1/2)."""

    def forward(self, x):
        return 0.5 * x.square().sum(-1) - x.sum(-1)


def conjugate(dim=3, device="cuda"):
    return pg.GEBM(pg.Base(nn.Identity(), pg.StandardNormal(dim)), Quadratic()).to(device)


def deep_potential():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 1)).cuda().requires_grad_(False)
    return lambda z: net(z)[:, 0] + 0.5 * z.square().sum(-1)


# --- recorded potentials ------------------------------------------


def test_a_recording_gives_what_autograd_gives_at_every_call():
    plain = deep_potential()
    captured = CapturedPotential(plain)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # recording is silent
        for seed in range(FIRST_CALLS + 3):
            z = torch.randn(32, 8, generator=torch.Generator().manual_seed(seed)).cuda()
            found.append((z, value_and_grad(captured, z)))
    assert captured._recordings[z.shape, z.dtype, z.device] is not None
    for z, (value, gradient) in found:  # also: no call wrote over the result of another
        exact_value, exact_gradient = value_and_grad(plain, z)
        assert torch.equal(value, exact_value)
        assert torch.equal(gradient, exact_gradient)


def test_each_shape_has_a_recording_of_its_own():
    plain = deep_potential()
    captured = CapturedPotential(plain)
    for size in (4, 7, 4, 7, 4, 7, 4, 7, 4, 7):
        z = torch.randn(size, 8, device="cuda")
        assert torch.equal(value_and_grad(captured, z)[1], value_and_grad(plain, z)[1])
    assert len(captured._recordings) == 2


def test_weights_that_change_in_place_are_seen():
    net = nn.Linear(3, 1).cuda().requires_grad_(False)
    captured = CapturedPotential(lambda z: net(z)[:, 0])
    z = torch.ones(2, 3, device="cuda")
    for _ in range(FIRST_CALLS + 2):
        value_and_grad(captured, z)
    net.weight.fill_(7.0)
    assert torch.equal(value_and_grad(captured, z)[1], torch.full_like(z, 7.0))


def test_a_potential_that_looks_at_its_values_is_never_recorded_and_breaks_nothing():
    def curious(z):
        return z.square().sum(-1) if float(z.detach().max()) > 0 else z.sum(-1)

    captured = CapturedPotential(curious)
    for sign in (1.0, -1.0) * 4:
        z = torch.full((5, 2), sign, device="cuda")
        expected = 2 * z if sign > 0 else torch.ones_like(z)
        assert torch.equal(value_and_grad(captured, z)[1], expected)
    assert captured._recordings[z.shape, z.dtype, z.device] is None
    assert torch.randn(1000, device="cuda").std().item() == pytest.approx(1.0, abs=0.2)
    assert torch.cuda.get_sync_debug_mode() == 0
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


def test_an_error_of_the_potential_reaches_the_caller():
    calls = 0

    def failing(z):
        nonlocal calls
        calls += 1
        if calls > FIRST_CALLS:
            raise KeyError("mine")
        return z.sum(-1)

    captured = CapturedPotential(failing)
    z = torch.zeros(2, 2, device="cuda")
    for _ in range(FIRST_CALLS):
        value_and_grad(captured, z)
    with pytest.raises(KeyError, match="mine"):
        value_and_grad(captured, z)


# --- recorded trees ------------------------------------------


def free_run(potential_fn, **settings):
    z = torch.randn(100, 8, generator=torch.Generator().manual_seed(2)).cuda()
    kernel = NUTS(max_tree_depth=4)
    return run(kernel, potential_fn, z, **{"num_samples": 30, "warmup_steps": 30} | settings)


def tuned(step_size):
    return Tuning(torch.full((100,), step_size).cuda(), torch.ones(8).cuda())


@pytest.fixture
def recordings(monkeypatch):
    """What came of each try to record trees."""
    honest, found = masked_nuts.record, []

    def spied(*args, **settings):
        found.append(honest(*args, **settings))
        return found[-1]

    monkeypatch.setattr(masked_nuts, "record", spied)
    return found


def test_recorded_trees_are_the_trees_grown_by_rows(recordings):
    plain = deep_potential()
    by_rows, recorded = free_run(plain), free_run(CapturedPotential(plain))
    assert len(recordings) == 2 and None not in recordings  # of warm-up and draws
    assert torch.equal(recorded.z, by_rows.z)
    assert torch.equal(recorded.info.num_steps, by_rows.info.num_steps)
    assert recorded.info.tree_depth.max() == 4


def test_trees_with_a_wall_are_recorded_too(recordings):
    def walled(z):
        return torch.where(z[:, 0] < 1, 0.5 * (z**2).sum(-1), torch.inf)

    start = {"tuning": tuned(0.7)}
    runs = [free_run(f, warmup_steps=0, **start) for f in (walled, CapturedPotential(walled))]
    assert runs[0].info.diverging.any()
    assert len(recordings) == 1 and None not in recordings
    for one, other in zip(*(r.info for r in runs), strict=True):
        assert one is None or torch.equal(one, other)


@pytest.mark.parametrize("kernel", ["NUTS", "HMC"])
def test_what_is_compiled_is_recorded_too_and_changes_nothing(kernel, recordings):
    gebm = conjugate(8).double()
    settings = {"kernel": kernel, "num_chains": 100, "num_samples": 20, "warmup_steps": 20}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile failed")
        fast = quiet_sample(gebm, compile=True, **settings)
    plain = quiet_sample(gebm, **settings)
    one, other = (idata["posterior"]["z"].values for idata in (fast, plain))
    assert np.abs(one - other)[:, :2].max() < 1e-6
    if kernel == "NUTS":  # of warm-up and draws, twice
        assert len(recordings) == 4 and None not in recordings


@pytest.mark.parametrize("kernel", ["NUTS", "HMC"])
def test_draws_written_beside_the_run_are_those_of_the_run(kernel, monkeypatch):
    kept = []

    def put_and_keep(buffers, *draw):
        kept.append((draw[0], draw[-2].z))
        return honest(buffers, *draw)

    name = "put" if kernel == "NUTS" else "put_all"
    honest = getattr(Buffers, name)
    monkeypatch.setattr(Buffers, name, put_and_keep)
    monkeypatch.setattr(draws_module, "FLUSH_BYTES", 2**14)
    z = torch.randn(100, 8, generator=torch.Generator().manual_seed(2)).cuda()
    settings = {"num_samples": 40, "warmup_steps": 0, "tuning": tuned(0.3)}
    draws = run(KERNELS_OF[kernel](), CapturedPotential(deep_potential()), z, **settings)
    if kernel == "HMC":
        assert torch.equal(draws.z, torch.stack([point for _, point in kept], 1).cpu())
        return
    for chain in (0, 37, 99):
        own = torch.cat([point[rows == chain] for rows, point in kept])
        assert torch.equal(draws.z[chain], own[:40].cpu())


def test_trees_of_a_curious_potential_are_grown_by_rows(recordings):
    def curious(z):
        assert float(z.detach().abs().max()) < 1e6
        return 0.5 * (z**2).sum(-1)

    runs = [free_run(potential) for potential in (curious, CapturedPotential(curious))]
    assert recordings == [None, None]
    assert torch.equal(runs[0].z, runs[1].z)


def test_what_a_chain_does_does_not_depend_on_blocks_beside_its_own():
    device = torch.device("cuda")
    few, many = (Streams(3, n * GPU_BLOCK, device).at(4) for n in (1, 3))
    like = torch.zeros(3 * GPU_BLOCK, 2, device=device)
    one, all_three = normal(like[:GPU_BLOCK], few), normal(like, many)
    assert torch.equal(one, all_three[:GPU_BLOCK])
    assert abs(float((one * all_three[GPU_BLOCK : 2 * GPU_BLOCK]).mean())) < 0.05
    # Blocks of a larger batch are those of the processor's, of 64 chains.
    assert Streams(3, 128, device, blocks=[5, 6]).size == 64


# --- sampling ------------------------------------------


def check_moments(idata):
    z = idata["posterior"]["z"].values.astype(float)
    for values, truth in ((z, MEAN), (z**2, VARIANCE + MEAN**2)):
        ess = pg.inference_data.ess(pg.inference_data.build({"z": values}, {}, {}), method="mean")
        error = values.std((0, 1)) / np.sqrt(np.asarray(ess).ravel())
        # Of six figures the largest is above 4.5 in one of 25,000 runs.
        assert (np.abs(values.mean((0, 1)) - truth) < 4.5 * error).all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("moves", [None, "auto"])
def test_moments_are_exact(kernel, moves):
    if kernel == "IMH" and moves is not None:
        pytest.skip("global moves itself")
    check_moments(quiet_sample(conjugate(), kernel=kernel, num_samples=300, global_moves=moves))


def test_moments_are_exact_with_tempering():
    check_moments(quiet_sample(conjugate(), kernel="HMC", num_samples=300, tempering=3))


def test_a_resumed_run_is_the_run_that_was_not_interrupted():
    settings = {"kernel": "ChEES", "warmup_steps": 50, "num_chains": 100}
    whole = quiet_sample(conjugate(), num_samples=60, **settings)
    first = quiet_sample(conjugate(), num_samples=20, **settings)
    rest = quiet_sample(conjugate(), num_samples=40, resume=first)
    z = np.concatenate([first["posterior"]["z"].values, rest["posterior"]["z"].values], 1)
    assert np.array_equal(z, whole["posterior"]["z"].values)


def test_a_seed_gives_the_same_draws_and_leaves_the_device_state_alone():
    torch.cuda.manual_seed(5)
    expected = torch.randn(3, device="cuda")
    torch.cuda.manual_seed(5)
    runs = [quiet_sample(conjugate(), num_samples=20, kernel="HMC") for _ in range(2)]
    assert torch.equal(torch.randn(3, device="cuda"), expected)
    one, other = (run["posterior"]["z"].values for run in runs)
    assert np.array_equal(one, other)


def test_images_of_a_store_are_those_in_memory(tmp_path):
    x = pg.generate(conjugate(), 500, seed=1, progress=False)
    file = tmp_path / "x.npy"
    pg.generate(conjugate(), 500, seed=1, progress=False, store=file)
    assert np.array_equal(np.load(file), x.numpy())


# --- training ------------------------------------------


def ring(config, steps=None):
    """A small model of the eight Gaussians, trained on the device."""
    torch.manual_seed(0)
    prior = pg.StandardNormal(2)
    gebm = pg.GEBM(pg.Base(MLPGenerator(2, (2,), (64, 64)), prior), MLPEnergy((2,), (64, 64)))
    source = torch.Generator().manual_seed(0)
    data = [sample_toy("gaussians8", 128, generator=source).cuda() for _ in range(50)]
    trainer = pg.Trainer(gebm.cuda(), config)
    for count, _ in enumerate(trainer.fit(data), start=1):
        if count == steps:
            break
    return gebm, trainer


CONFIG = pg.TrainConfig(base_steps=60, refit_steps=300, refit_gradient_penalty=0.01)


def test_a_refit_on_the_device_tells_data_from_the_base():
    gebm, _ = ring(CONFIG)
    fresh = sample_toy("gaussians8", 4000, generator=torch.Generator().manual_seed(9)).cuda()
    with torch.no_grad():
        base = gebm.base.sample(4000)
        energies = gebm.evaluate_energy(base)
        log_z = torch.logsumexp(-energies, 0) - np.log(len(base))
        kale = -gebm.evaluate_energy(fresh).mean() - log_z
    assert kale > 0.1  # the data are closer to the model than to its base; 0 for no energy


def test_bfloat16_and_channels_last_train_a_conv_preset(tmp_path):
    preset = load_preset("cifar10-sngan")
    training = replace(
        preset.training, base_steps=3, refit_steps=2, boost_steps=1, evaluation_samples=64
    )
    torch.manual_seed(0)
    gebm = preset.build().cuda()
    before = [p.detach().clone() for p in gebm.parameters()]
    pixels = torch.randint(256, (256, 3, 32, 32), dtype=torch.uint8)
    source = torch.Generator().manual_seed(0)
    loader = ImageLoader(pixels, 128, generator=source, flip=True, device="cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        infos = list(pg.Trainer(gebm, training).fit(loader))
    assert all(np.isfinite(float(info.bound)) for info in infos)
    assert all(p.isfinite().all() for p in gebm.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, gebm.parameters(), strict=True))
