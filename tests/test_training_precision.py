"""The same steps in parts, in lower precision, compiled, and in another memory format."""

import copy
import math
import shutil
import warnings

import pytest
import torch
from helpers import small_gebm
from torch import nn

import pyro_gebm as pg
from pyro_gebm.training import ChainsConfig, ReplayConfig

RATES = {"energy_lr": 0.01, "base_lr": 0.02, "log_partition_lr": 0.03}


def data(num):
    return torch.randn(num, 3, generator=torch.Generator().manual_seed(1)) + 0.5


def rounds(gebm, x, num=4, **settings):
    """``num`` energy steps and base steps; the trainer and its figures."""
    torch.manual_seed(0)
    trainer, figures = pg.Trainer(gebm, pg.TrainConfig(**RATES, **settings)), []
    for _ in range(num):
        figures.append((trainer.energy_step(x), trainer.base_step()))
    return trainer, figures


def gradient(trainer, which):
    """Of the only step so far: with β₁ = 0 it is Adam's average of gradients."""
    state = trainer.state_dict()["steps"][which]["optimizer"]["state"]
    return torch.cat([state[i]["exp_avg"].flatten() for i in sorted(state)])


# --- micro-batches ------------------------------------------


METHODS = [
    {"base_loss": "self_normalized"},
    {"base_loss": "amortized"},
    {"log_partition_update": "closed_form"},
    {"log_partition_update": "closed_form", "log_partition_memory": 0.5, "base_loss": "amortized"},
    {"objective": "donsker_varadhan"},
    {"objective": "gan"},
    {"objective": "wgan"},
    {"objective": "contrastive", "mode": "energy", "replay": ReplayConfig(64, 2, 0.1, 0.3)},
    {"chains": ChainsConfig(3, "base", persistent=True)},
    {"chains": ChainsConfig(3, "energy")},
]


def constant_free(gebm):
    # Where a loss does not change with the energy's constant, the gradient of this bias is pure
    # rounding, of which Adam would make steps of 1e-11.
    gebm.energy[-1].bias.requires_grad_(False)
    return gebm


@pytest.mark.parametrize("parts", [2, 3, 100])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_step_in_parts_is_the_step_as_a_whole(method, parts):
    settings = {"penalty_points": "both", "energy_l2": 0.1, "num_latents": 11, **method}
    if method.get("objective") != "contrastive":
        settings["latents_per_datum"] = 2
    fits = []
    for accumulate in (1, parts):
        gebm = constant_free(small_gebm().double())
        trainer, figures = rounds(gebm, data(7).double(), **settings, accumulate=accumulate)
        fits.append((gebm.state_dict(), [(*info, loss) for info, loss in figures]))
        assert trainer.state_dict()["steps"]["gradients"] > 0
    torch.testing.assert_close(*fits, rtol=0, atol=1e-12, equal_nan=True)


class Widths(nn.Module):
    """An energy that remembers the batches whose graphs it holds."""

    def __init__(self, energy):
        super().__init__()
        self.energy, self.with_graph, self.without = energy, [], []

    def forward(self, x):
        value = self.energy(x)
        (self.with_graph if value.requires_grad else self.without).append(len(x))
        return value


@pytest.mark.parametrize(("objective", "extra"), [("kale", 0), ("donsker_varadhan", 1)])
def test_no_part_is_wider_than_its_share(objective, extra):
    gebm = small_gebm()
    gebm.energy = Widths(gebm.energy)
    settings = {"objective": objective, "gradient_penalty": 0.0, "num_latents": 9}
    rounds(gebm, data(6), num=1, accumulate=3, **settings)
    # log Z of the whole batch is known beforehand, from passes that keep nothing.
    assert gebm.energy.with_graph == [4, 4, 4, 3, 3, 3]
    assert gebm.energy.without == [2, 2, 2] * extra + [3, 3, 3]


# --- lower precision ------------------------------------------


# Half a unit in the last place of a number is this share of it, or less.
ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11}


def wide_gebm(seed=0):
    torch.manual_seed(seed)
    generator = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 3))
    energy = nn.Sequential(nn.Linear(3, 64), nn.Softplus(), nn.Linear(64, 1))
    return pg.GEBM(pg.Base(generator, pg.StandardNormal(4)), energy)


@pytest.mark.parametrize("method", [METHODS[0], METHODS[1], METHODS[4], METHODS[5]], ids=str)
@pytest.mark.parametrize("precision", list(ROUNDING))
def test_gradients_in_lower_precision_are_those_in_full_but_for_its_rounding(precision, method):
    gradients = []
    for name in ("float32", precision):
        config = pg.TrainConfig(momentum=0.0, gradient_penalty=0.0, precision=name, **method)
        trainer = pg.Trainer(wide_gebm(), config)
        torch.manual_seed(0)
        # The base first: a step of Adam makes much of a small difference in the energy.
        loss, info = trainer.base_step(), trainer.energy_step(data(64))
        assert {figure.dtype for figure in (*info[:5], loss)} == {torch.float32}
        assert {parameter.dtype for parameter in trainer.gebm.parameters()} == {torch.float32}
        gradients.append([gradient(trainer, "base"), gradient(trainer, "energy")])
    for full, low in zip(*gradients, strict=True):
        error = (low - full).norm() / full.norm()
        # Of the roundings on the way, ten or so, the signs are at random.
        assert ROUNDING[precision] / 10 < error < 4 * ROUNDING[precision]


@pytest.mark.parametrize("precision", list(ROUNDING))
def test_what_is_not_a_network_stays_in_full_precision(precision):
    low = getattr(torch, precision)
    settings = {"precision": precision, "log_partition_update": "closed_form"}
    gebm, twin, x = wide_gebm(), wide_gebm(), data(64)
    _, ((info, _),) = rounds(gebm, x, num=1, penalty_every=1, **settings)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=low), torch.no_grad():
        fake = twin.base.generator(twin.base.latent_prior.sample(64)).float()
        energies = twin.energy(torch.cat([x, fake])).float().squeeze(1)
    u = torch.rand(64, 1)
    points = (u * x + (1 - u) * fake).requires_grad_()
    (slope,) = torch.autograd.grad(twin.energy(points).sum(), points)  # all of it in float32
    real, negative = energies[:64].double(), energies[64:].double()
    log_z = (-negative).exp().mean().log()
    for figure, expected in (
        (info.penalty, slope.square().sum(1).mean()),
        (gebm.log_partition.detach(), log_z),
        (info.batch_log_z, log_z),
        (info.bound, -real.mean() - log_z),
        (info.energy_gap, negative.mean() - real.mean()),
    ):
        # A rounding of the format on the way would show a thousand times as large.
        torch.testing.assert_close(figure.double(), expected.double(), rtol=1e-6, atol=1e-6)


def test_an_overflow_in_float16_is_skipped_and_no_divergence():
    # A single datum has the whole scaled loss, 65536, as its slope: too much for float16.
    settings = {"num_latents": 1, "gradient_penalty": 0.0, "refit_steps": 0, "schedule": "constant"}
    config = pg.TrainConfig(precision="float16", energy_steps=1, base_steps=6, **settings)
    gebm, norms, moved = wide_gebm(), [], []
    before = copy.deepcopy(gebm.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a rollback warns
        for info in pg.Trainer(gebm, config).fit([data(1)]):
            norms.append((info.energy_grad_norm, info.base_grad_norm))
            after = copy.deepcopy(gebm.state_dict())
            moved.append(any(not torch.equal(before[name], after[name]) for name in before))
            before = after
    assert info.rollbacks == 0
    assert all(map(math.isnan, norms[0]))
    assert all(math.isfinite(norm) and norm > 0 for pair in norms[1:] for norm in pair)
    assert moved == [False] + [True] * 5


def test_a_gradient_that_no_scale_saves_is_a_divergence():
    class Cliff(nn.Module):
        def forward(self, energy):
            return energy + (energy - energy.detach()).sqrt()  # of an infinite slope

    gebm = wide_gebm()
    gebm.energy.append(Cliff())
    before = copy.deepcopy(gebm.state_dict())
    trainer = pg.Trainer(gebm, pg.TrainConfig(precision="float16", gradient_penalty=0.0))
    with pytest.raises(pg.TrainingError, match=r"^energy: the loss, .*, or its gradient is not"):
        for _ in range(30):  # from 2^16 down to 2^-10
            trainer.energy_step(data(8))
    torch.testing.assert_close(gebm.state_dict(), before, rtol=0, atol=0)


def test_the_loss_is_scaled_in_float16_for_gradients_too_small_for_it():
    class Faint(nn.Module):
        def forward(self, energy):
            return 1e-6 * energy

    # Slopes of 1e-6/64 are a quarter of the least number of float16; times 2^16 they are not.
    gradients = []
    for name in ("float32", "float16"):
        gebm = wide_gebm()
        gebm.energy.append(Faint())
        config = pg.TrainConfig(momentum=0.0, gradient_penalty=0.0, precision=name)
        trainer = pg.Trainer(gebm, config)
        torch.manual_seed(0)
        trainer.energy_step(data(64))
        gradients.append(gradient(trainer, "energy")[:-1])  # but for that of c
    full, low = gradients
    assert full.abs().max() < 1e-6
    assert (low - full).norm() < 4 * ROUNDING["float16"] * full.norm()


# --- torch.compile ------------------------------------------


def fit(gebm, **settings):
    torch.manual_seed(0)
    config = pg.TrainConfig(**{"base_steps": 3, "refit_steps": 2, **settings})
    list(pg.Trainer(gebm, config).fit([data(16).to(gebm.log_partition)]))
    return gebm.state_dict()


@pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")),
    reason="torch.compile needs a C++ compiler on the CPU",
)
def test_a_compiled_energy_takes_the_steps_of_itself():
    fits = []
    for compiled in (False, True):
        torch.manual_seed(0)
        # A base that needs no compiling: each graph takes seconds.
        base = pg.Base(nn.Identity(), pg.StandardNormal(3))
        gebm = pg.GEBM(
            base, nn.Sequential(nn.Linear(3, 8), nn.Softplus(), nn.Linear(8, 1))
        ).double()
        config = pg.TrainConfig(compile=compiled, refit_steps=3)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="torch.compile failed")
            list(pg.Trainer(gebm, config).refit_energy([data(16).double()]))
        fits.append(gebm.state_dict())
    torch.testing.assert_close(*fits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_both_networks_run_as_torch_compile_made_them(monkeypatch, precision):
    real, made = torch.compile, []

    def traced(function, **settings):
        made.append(function)
        return real(function, backend="eager")

    plain = fit(small_gebm(), precision=precision)
    monkeypatch.setattr(torch, "compile", traced)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile failed")
        compiled = fit(small_gebm(), compile=True, precision=precision)
    assert len(made) == 2
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-6)


def refuses_at_once(function, **settings):
    raise RuntimeError("no such thing on this Python")


def refuses_when_called(function, **settings):
    def run(inputs):
        raise RuntimeError("no C++ compiler")

    return run


@pytest.mark.parametrize("refuses", [refuses_at_once, refuses_when_called])
def test_without_torch_compile_training_goes_on_and_says_so_once(monkeypatch, refuses):
    eager = fit(small_gebm())
    monkeypatch.setattr(torch, "compile", refuses)
    with pytest.warns(UserWarning, match=r"torch\.compile failed \(RuntimeError\)") as caught:
        compiled = fit(small_gebm(), compile=True)
    assert len(caught) == 1
    torch.testing.assert_close(compiled, eager, rtol=0, atol=0)


def test_an_error_of_the_network_is_not_put_on_torch_compile(monkeypatch):
    def raising(x):
        raise ZeroDivisionError("of the network itself")

    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)
    gebm = small_gebm()
    gebm.energy.forward = raising
    trainer = pg.Trainer(gebm, pg.TrainConfig(compile=True))
    with warnings.catch_warnings(), pytest.raises(ZeroDivisionError, match="itself"):
        warnings.simplefilter("error")
        trainer.energy_step(data(4))


# --- memory format ------------------------------------------


class Formats(nn.Module):
    """Passes images on, and remembers how they lie in memory."""

    def __init__(self):
        super().__init__()
        self.channels_last = []

    def forward(self, x):
        self.channels_last.append(x.is_contiguous(memory_format=torch.channels_last))
        return x


def images(dtype=torch.float64):
    torch.manual_seed(0)
    generator = nn.Sequential(
        nn.Linear(4, 32), nn.Unflatten(1, (8, 2, 2)), nn.ConvTranspose2d(8, 3, 4, 2, 1)
    )
    energy = nn.Sequential(
        Formats(), nn.Conv2d(3, 8, 3), nn.Softplus(), nn.Flatten(), nn.Linear(32, 1)
    )
    return pg.GEBM(pg.Base(generator, pg.StandardNormal(4)), energy).to(dtype)


def test_channels_last_gives_the_same_numbers():
    x = torch.randn(16, 3, 4, 4, dtype=torch.float64)
    fits = []
    for channels_last in (False, True):
        gebm = images()
        gebm.energy[-1].bias.requires_grad_(False)
        config = pg.TrainConfig(base_steps=3, refit_steps=2, channels_last=channels_last)
        torch.manual_seed(0)
        list(pg.Trainer(gebm, config).fit([x]))
        fits.append(gebm.state_dict())
        weight = gebm.energy[1].weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert all(given == channels_last for given in gebm.energy[0].channels_last)
    torch.testing.assert_close(*fits, rtol=0, atol=1e-12)
