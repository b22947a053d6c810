"""What is trained when, on which draws and how it is judged: against hand-written loops."""

import copy
import itertools
import math

import pytest
import torch
from helpers import same, small_gebm
from torch import nn

import pyro_gebm as pg
from pyro_gebm.nets import FourierEnergy
from pyro_gebm.training import ChainsConfig, ReplayConfig, solve_energy
from pyro_gebm.training.latents import LatentChains

RATES = {"energy_lr": 0.01, "base_lr": 0.02, "log_partition_lr": 0.03, "momentum": 0.4}


def pair(**settings):
    """Two equal models of float64, the first with a trainer."""
    model, twin = small_gebm().double(), small_gebm().double()
    return pg.Trainer(model, pg.TrainConfig(**RATES, **settings)), twin


def data(num=16):
    return torch.randn(num, 3, generator=torch.Generator().manual_seed(1)).double() + 0.5


def adam_of_energy(gebm, momentum=0.4):
    groups = [
        {"params": gebm.energy.parameters(), "lr": 0.01},
        {"params": [gebm.log_partition], "lr": 0.03},
    ]
    return torch.optim.Adam(groups, betas=(momentum, 0.99))


def adam_of_base(gebm):
    return torch.optim.Adam(gebm.base.generator.parameters(), lr=0.02, betas=(0.4, 0.99))


def descend(adam, loss, **settings):
    adam.zero_grad()
    parameters = [p for group in adam.param_groups for p in group["params"] if p.requires_grad]
    loss.backward(inputs=parameters, **settings)
    adam.step()


def bound_of(real, fake, c):
    return 1 - (real + c).mean() - (-(fake + c)).exp().mean()


def penalty_at(energy, points):
    points = points.detach().requires_grad_()
    (slope,) = torch.autograd.grad(energy(points).sum(), points, create_graph=True)
    return slope.square().sum(1).mean()


@torch.no_grad()
def set_constant(gebm):
    gebm.log_partition.copy_((-gebm.energy(gebm.base.sample(8192))).exp().mean().log())


def close(figure, expected):
    torch.testing.assert_close(figure, expected.detach(), rtol=0, atol=1e-12)


def assert_same(gebm, twin):
    torch.testing.assert_close(gebm.state_dict(), twin.state_dict(), rtol=0, atol=1e-12)


def small_line():
    """N(0, 1) under an energy of constant slope, from zero on."""
    gebm = pg.GEBM(pg.Base(nn.Identity(), pg.StandardNormal(1)), nn.Linear(1, 1))
    nn.init.zeros_(gebm.energy.weight)
    return gebm


def last(infos):
    return list(infos)[-1]


# --- modes ------------------------------------------


def with_batch_norm():
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    energy = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Softplus(), nn.Linear(8, 1))
    return pg.GEBM(pg.Base(generator, pg.StandardNormal(2)), energy)


@pytest.mark.parametrize("update", ["closed_form", "gradient"])
@pytest.mark.parametrize("mode", ["energy", "base", "both"])
def test_a_mode_trains_its_half_and_leaves_the_other_to_the_last_buffer(mode, update):
    gebm = with_batch_norm()
    with torch.no_grad():
        gebm.log_partition.fill_(0.7)
    before = copy.deepcopy(gebm.state_dict())
    settings = {"log_partition_update": update, "ema_decay": 0.0, "base_steps": 4}
    config = pg.TrainConfig(mode=mode, refit_steps=0, **settings)
    for info in pg.Trainer(gebm, config).fit([data().float()]):
        assert gebm.base.generator.training == (mode != "energy")
        assert gebm.energy.training == (mode != "base")
        assert (info.energy_gap.isnan(), info.base_loss.isnan()) == (
            mode == "base",
            mode == "energy",
        )
        after = copy.deepcopy(gebm.state_dict())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    halves = {
        "base": {name for name in before if name.startswith("base.")},
        "energy": {name for name in before if not name.startswith("base.")},
    }
    assert moved == (halves[mode] if mode != "both" else set(before))


def test_a_base_trained_alone_is_the_hand_written_one():
    gebm, twin = small_gebm().double(), small_gebm().double()
    settings = {"base_steps": 5, "refit_steps": 0, "ema_decay": 0.0, "schedule": "constant"}
    torch.manual_seed(0)
    list(pg.Trainer(gebm, pg.TrainConfig(mode="base", **settings, **RATES)).fit([data()]))
    torch.manual_seed(0)
    adam = adam_of_base(twin)
    for _ in range(5):
        energies = twin.energy(twin.base.generator(twin.base.latent_prior.sample(128)))
        descend(adam, -(-energies).exp().mean().log())
    assert_same(gebm, twin)


BOOSTS = [
    (0, 0, [2, 2, 2, 2, 2, 2, 2]),
    (5, 0, [5, 2, 2, 2, 2, 2, 2]),
    (5, 3, [5, 2, 2, 5, 2, 2, 5]),
    (1, 4, [1, 2, 2, 2, 1, 2, 2]),
]


@pytest.mark.parametrize("how", [{"mode": "both"}, {"mode": "energy"}, {"update": "joint"}])
@pytest.mark.parametrize(("boost_steps", "boost_every", "expected"), BOOSTS)
def test_boosts_come_at_the_start_and_every_so_often(how, boost_steps, boost_every, expected):
    settings = {"boost_steps": boost_steps, "boost_every": boost_every, **how}
    config = pg.TrainConfig(base_steps=7, energy_steps=2, refit_steps=2, **settings)
    batches, done = [], []

    def loader():
        while True:
            batches.append(1)
            yield data().float()

    trainer = pg.Trainer(small_gebm(), config)
    for _ in trainer.fit(loader()):
        done.append(trainer.state_dict()["steps"]["energy_steps_done"])
        assert len(batches) == done[-1]  # one for each
    assert done == list(itertools.accumulate([*expected, 1, 1]))


# --- one stage ------------------------------------------


JOINT = [
    ("kale", "self_normalized"),
    ("kale", "amortized"),
    ("donsker_varadhan", "self_normalized"),
    ("gan", "self_normalized"),
]


@pytest.mark.parametrize(("objective", "base_loss"), JOINT)
def test_joint_steps_are_the_hand_written_ones(objective, base_loss):
    # Both gradients at the same parameters and draws; energy steps before it are ordinary ones.
    settings = {"objective": objective, "base_loss": base_loss, "gradient_penalty_end": 1.0}
    settings |= {"base_steps": 3, "energy_steps": 2, "penalty_every": 3, "latents_per_datum": 2}
    settings |= {"refit_steps": 0, "ema_decay": 0.0, "schedule": "constant", "update": "joint"}
    gebm, twin = small_gebm().double(), small_gebm().double()
    for model in (gebm, twin):  # else its gradient may be pure rounding, which Adam blows up
        model.energy[-1].bias.requires_grad_(False)
    energy, generator, c = twin.energy, twin.base.generator, twin.log_partition
    adam, base_adam = adam_of_energy(twin), adam_of_base(twin)
    x = data()

    def energy_loss(real, fake):
        if objective == "kale":
            return -bound_of(real, fake, c)
        if objective == "gan":
            return -torch.sigmoid(-real).log().mean() - torch.sigmoid(fake).log().mean()
        return real.mean() + (-fake).exp().mean().log()

    def generator_loss(fake):
        if objective == "gan":
            return -torch.sigmoid(-fake).log().mean()
        if base_loss == "amortized":
            return -(-fake - c.detach()).exp().mean()
        return -(-fake).exp().mean().log()

    torch.manual_seed(0)
    infos = list(pg.Trainer(gebm, pg.TrainConfig(**settings, **RATES)).fit([x]))
    torch.manual_seed(0)
    done = 0
    for info in infos:
        for joint in (False, True):
            samples = generator(twin.base.latent_prior.sample(32))
            real, fake = energy(x), energy(samples)
            loss = energy_loss(real, fake)
            if done % 3 == 0:
                u = torch.rand(16, 1, dtype=x.dtype)
                loss = loss + 3 * penalty_at(energy, u * x + (1 - u) * samples[::2])
            done += 1
            if joint:
                value = generator_loss(fake)
                parameters = list(generator.parameters())
                slopes = torch.autograd.grad(value, parameters, retain_graph=True)
            if objective != "kale":
                loss = loss + 0 * c  # not learned
            descend(adam, loss)
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter.grad = slope
        base_adam.step()
        close(info.base_loss, value)
        close(info.energy_gap, fake.mean() - real.mean())
    if objective != "kale":  # c was not learned
        set_constant(twin)
    assert_same(gebm, twin)


# --- draws, penalties, rates ------------------------------------------


@pytest.mark.parametrize("update", ["gradient", "closed_form"])
def test_several_latents_per_datum_and_all_the_extras_are_the_hand_written_ones(update):
    # Interpolates pair each datum with the first of its samples; E + c is drawn to zero, or E
    # itself where c follows it.
    settings = {"latents_per_datum": 3, "energy_l2": 0.2, "penalty_points": "both"}
    settings["log_partition_update"] = update
    trainer, twin = pair(**settings, gradient_penalty=0.7, penalty_every=1)
    energy, c, adam, x = twin.energy, twin.log_partition, adam_of_energy(twin), data()
    for step in range(4):
        torch.manual_seed(step)
        samples = twin.base.sample(48)
        real, fake = energy(x), energy(samples)
        u = torch.rand(16, 1, dtype=x.dtype)
        points = torch.cat([u * x + (1 - u) * samples[::3], x])
        penalty = penalty_at(energy, points)
        if update == "closed_form":
            with torch.no_grad():
                c.copy_((-fake).exp().mean().log())
            c.requires_grad_(False)
        pulled = [part + c if update == "gradient" else part for part in (real, fake)]
        squares = (pulled[0].square().mean() + pulled[1].square().mean()) / 2
        bound = bound_of(real, fake, c)
        descend(adam, -bound + 0.7 * penalty + 0.2 * squares)
        torch.manual_seed(step)
        info = trainer.energy_step(x)
        close(info.bound, bound)
        close(info.penalty, penalty)
        close(info.batch_log_z, (-fake).exp().mean().log())
        weights = (-fake).exp()
        close(info.importance_ess, weights.sum().square() / (48 * weights.square().sum()))
    assert_same(trainer.gebm, twin)


def test_a_whole_fit_under_a_schedule_of_ones_own_is_the_hand_written_one():
    def schedule(optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.3)

    settings = {"base_steps": 5, "refit_steps": 4, "ema_decay": 0.6, "refit_lr": 0.01}
    settings |= {"gradient_penalty": 0.0, "refit_gradient_penalty": 0.0}
    gebm, twin = small_gebm().double(), small_gebm().double()
    trainer = pg.Trainer(gebm, pg.TrainConfig(**settings, **RATES), lr_schedule=schedule)
    x = data()
    torch.manual_seed(0)
    list(trainer.fit([x]))

    torch.manual_seed(0)
    energy, generator, c = twin.energy, twin.base.generator, twin.log_partition

    def energy_step(adam):
        descend(adam, -bound_of(energy(x), energy(twin.base.sample(16)), c))

    adam, base_adam, average = adam_of_energy(twin), adam_of_base(twin), None
    schedules = [schedule(adam), schedule(base_adam)]
    for _ in range(5):
        energy_step(adam)
        energy_step(adam)
        energies = energy(generator(twin.base.latent_prior.sample(128)))
        descend(base_adam, -(-energies).exp().mean().log())
        weights = nn.utils.parameters_to_vector(generator.parameters()).detach()
        average = weights if average is None else 0.6 * average + 0.4 * weights
        for one in schedules:
            one.step()
    nn.utils.vector_to_parameters(average, generator.parameters())
    set_constant(twin)  # the averaged base has another
    set_constant(twin)
    adam = adam_of_energy(twin, momentum=0.9)
    refit = schedule(adam)
    for _ in range(4):
        energy_step(adam)
        refit.step()
    assert_same(gebm, twin)


def test_the_average_has_the_buffers_too_and_is_what_averaged_gives():
    class Indexed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(2, 4), nn.BatchNorm1d(4)
            self.register_buffer("order", torch.tensor([3, 0, 1]))  # 0.9 * 3 + 0.1 * 3 < 3

        def forward(self, z):
            return self.norm(self.linear(z))[:, self.order]

    gebm = pg.GEBM(pg.Base(Indexed(), pg.StandardNormal(2)), nn.Linear(3, 1))
    config = pg.TrainConfig(base_steps=4, refit_steps=0, base_lr=0.1, ema_decay=0.9)
    trainer, expected = pg.Trainer(gebm, config), None

    def parts(generator):
        return [generator.linear.weight.detach().clone(), generator.norm.running_mean.clone()]

    for info in trainer.fit([data().float()]):
        now = parts(gebm.base.generator)
        pairs = zip(expected or now, now, strict=True)
        expected = [0.9 * a + 0.1 * b for a, b in pairs] if info.step > 1 else now
        model = trainer.averaged()
        assert not any(part.training for part in model.modules())
        torch.testing.assert_close(parts(model.base.generator), expected, rtol=0, atol=1e-6)
        assert model.base.generator.order.tolist() == [3, 0, 1]
    assert (now[0] - expected[0]).abs().max() > 0.01
    assert same(gebm.base.state_dict(), model.base.state_dict())


# --- latent chains ------------------------------------------


def chains_of(gebm, persistent):
    return LatentChains(gebm, steps=4, persistent=persistent, target_accept_prob=0.7)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize(
    ("use_for", "memory"), [("base", 0.0), ("energy", 0.0), ("energy", 0.6), ("both", 0.0)]
)
def test_steps_on_latent_chains_are_the_hand_written_ones(use_for, memory, persistent):
    chains = ChainsConfig(4, use_for, persistent, target_accept_prob=0.7)
    settings = {"chains": chains, "log_partition_memory": memory, "gradient_penalty": 0.0}
    trainer, twin = pair(**settings, num_latents=24)
    energy, generator, c = twin.energy, twin.base.generator, twin.log_partition
    for model in (trainer.gebm, twin):  # a contrast does not know it
        model.energy[-1].bias.requires_grad_(use_for == "base")
    adam, base_adam = adam_of_energy(twin), adam_of_base(twin)
    own, x = chains_of(twin, persistent), data()
    prior = twin.base.latent_prior
    for step in range(3):
        torch.manual_seed(step)
        real = energy(x)
        if use_for == "base":
            fake = energy(twin.base.sample(16))
            descend(adam, -bound_of(real, fake, c))
        else:
            fake = energy(generator(own.draw(16).z).detach())
            # c is log Z of the base, to which the chains' positions are no key.
            mean = (-energy(twin.base.sample(16))).exp().mean().detach()
            with torch.no_grad():
                c.copy_((memory * c.exp() + (1 - memory) * mean).log())
            descend(adam, real.mean() - fake.mean() + 0 * c)
        gap = fake.mean() - real.mean()
        if use_for == "energy":
            value = -(-energy(generator(prior.sample(24)))).exp().mean().log()
        else:
            value = energy(generator(own.draw(24).z)).mean()
        descend(base_adam, value)
        torch.manual_seed(step)
        info = trainer.energy_step(x)
        close(info.energy_gap, gap)
        if use_for != "base":
            close(info.batch_log_z, mean.log())
            close(info.bound, -real.mean() - mean.log())
        close(trainer.base_step(), value)
        assert_same(trainer.gebm, twin)


# --- held-out data ------------------------------------------


def test_held_out_figures_are_the_hand_written_ones_when_they_are_due():
    gebm = with_batch_norm().double()
    held_out = data(3000) - 0.4
    settings = {"evaluate_every": 3, "evaluation_samples": 2500, "ema_decay": 0.0}
    config = pg.TrainConfig(base_steps=7, refit_steps=4, **settings, **RATES)
    due = []
    for info in pg.Trainer(gebm, config, held_out=held_out).fit([data()]):
        if info.held_out is None:
            continue
        due.append((info.phase, info.step))
        model = copy.deepcopy(gebm).eval()
        torch.manual_seed(0)
        fake = model.energy(model.base.sample(2500)).squeeze(1)
        real, c = model.energy(held_out).mean(), model.log_partition
        log_z, shares = (-fake).exp().mean().log(), (-fake).exp() / (-fake).exp().sum()
        bound = -(real + c) - (-(fake + c)).exp().mean() + 1
        ess = 1 / (2500 * shares.square().sum())
        expected = torch.stack([bound, -real - log_z, log_z, c - log_z, ess]).tolist()
        assert info.held_out == pytest.approx(expected, abs=1e-12)
        assert info.held_out.kale >= info.held_out.bound
    assert due == [("alternate", 3), ("alternate", 6), ("alternate", 7), ("refit", 3), ("refit", 4)]


def test_a_look_does_not_disturb_the_training():
    fits = []
    for settings in ({}, {"held_out": data(50).float()}):
        gebm = with_batch_norm()
        torch.manual_seed(3)
        config = pg.TrainConfig(base_steps=5, refit_steps=5, evaluate_every=1)
        list(pg.Trainer(gebm, config, **settings).fit([data().float()]))
        fits.append(gebm.state_dict())
    torch.testing.assert_close(*fits, rtol=0, atol=0)


@pytest.mark.parametrize("objective", ["kale", "donsker_varadhan"])
@pytest.mark.parametrize("patience", [0, 3])
def test_an_overfitting_refit_ends_early_and_goes_back_to_its_best(patience, objective):
    # Steps of 0.02 to a slope of -1.5, past the -0.3 that the held-out data want.
    x, held_out = (mean + torch.randn(1024, 1) for mean in (1.5, 0.3))
    gebm, bounds, states = small_line(), [], []
    settings = {"refit_steps": 100, "refit_lr": 0.02, "refit_gradient_penalty": 0.0}
    settings |= {"evaluate_every": 5, "refit_patience": patience, "schedule": "constant"}
    settings["objective"] = objective
    trainer = pg.Trainer(gebm, pg.TrainConfig(**settings), held_out=held_out)
    for info in trainer.refit_energy([x]):
        if info.held_out is not None:
            # What does not learn c beside the energy is judged at c = log Z.
            judged = info.held_out.bound if objective == "kale" else info.held_out.kale
            bounds.append(judged)
            states.append(copy.deepcopy(gebm.state_dict()))
    best = bounds.index(max(bounds))
    assert gebm.base.training
    if patience:
        assert 1 <= best <= 5  # 15 steps, or up to twice as many where c lags behind
        assert len(bounds) == best + 1 + patience
        assert trainer.state_dict()["best"]["value"] == max(bounds)
        assert same(gebm.state_dict(), states[best])
    else:
        assert len(bounds) == 20
        assert bounds[-1] < bounds[best] - 0.3  # it does overfit
        assert same(gebm.state_dict(), states[-1])


# --- the count of gradients ------------------------------------------


class Counting(nn.Module):
    """An energy that counts the data at which a gradient of it is taken."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 1)
        self.count = 0

    def forward(self, x):
        hidden = self.first(x)
        if hidden.requires_grad:
            hidden.register_hook(self.add)
        return self.last(nn.functional.softplus(hidden))

    def add(self, slopes):
        # In a joint step, data of which the base's loss does not know come along as zeros.
        self.count += int((slopes != 0).any(1).sum())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate": 3, "latents_per_datum": 2, "penalty_points": "both"},
        {"objective": "wgan", "penalty_every": 1},
        {"update": "joint", "latents_per_datum": 2},
        {"mode": "base"},
        {"chains": ChainsConfig(3, "base")},
        {"chains": ChainsConfig(3, "energy", persistent=True)},
        {"chains": ChainsConfig(3, "both", persistent=True), "accumulate": 2},
        {"mode": "energy", "objective": "contrastive", "replay": ReplayConfig(64, steps=3)},
    ],
    ids=str,
)
def test_gradients_are_counted(settings):
    gebm = small_gebm()
    gebm.energy = Counting()
    config = pg.TrainConfig(base_steps=3, refit_steps=2, num_latents=11, **settings)
    for info in pg.Trainer(gebm, config, held_out=data(5).float()).fit([data(7).float()]):
        assert info.gradients == gebm.energy.count > 0


# --- the optimum of a convex class ------------------------------------------


@pytest.mark.parametrize(("by", "radius"), [("mode", 1.0), ("mode", 3.0), ("refit", 3.0)])
def test_training_reaches_the_optimum_that_the_solver_finds(by, radius):
    num, averaged, num_features = 2048, 16, 32
    x = torch.randn(num, 2) * 0.7 + torch.tensor([0.8, 0.0])
    energy = FourierEnergy((2,), num_features, bandwidth=1.5, radius=radius)
    gebm = pg.GEBM(pg.Base(nn.Identity(), pg.StandardNormal(2)), energy)
    settings = {"log_partition_lr": 0.02, "linear_from": math.inf, "gradient_penalty": 0.0}
    if by == "mode":
        settings |= {"mode": "energy", "base_steps": 300, "energy_steps": 1, "refit_steps": 0}
        last(pg.Trainer(gebm, pg.TrainConfig(energy_lr=0.05, **settings)).fit([x]))
    else:
        settings |= {"refit_steps": 300, "refit_lr": 0.05, "refit_gradient_penalty": 0.0}
        last(pg.Trainer(gebm, pg.TrainConfig(**settings)).refit_energy([x]))
    samples = torch.randn(40_000, 2)
    solution = solve_energy(energy, x, samples)
    real, fake = energy(x).detach().double(), energy(samples).detach().double()
    log_z = (-fake).exp().mean().log()
    # Either side has base samples of its own: the last steps' of the cosine schedule, together,
    # and these. Each costs half a weight's variance per feature and sample.
    weights = (-fake - log_z).exp()
    share = 1 / (averaged * num) + 1 / len(samples)
    excess = num_features / 2 * weights.square().mean().item() * share
    assert 0.25 < solution.value < 0.6
    assert -1e-9 <= solution.value - (-real.mean() - log_z).item() < excess < 0.003
    error = (weights.var() * share).sqrt()
    assert (gebm.log_partition - log_z).abs() < 4 * error


# --- what a trainer refuses ------------------------------------------


@pytest.mark.parametrize(
    ("settings", "held_out", "message"),
    [
        ({"refit_patience": 2}, None, r"^held_out: expected data .*got None"),
        ({}, torch.zeros(5, 4), r"^held_out: expected shape \(B, 3\); got \(5, 4\)"),
        ({}, torch.zeros(3), r"^held_out: expected shape \(B, 3\); got \(3,\)"),
        ({}, torch.zeros(0, 3), r"^held_out: expected at least one datum"),
        ({"precision": "bfloat16"}, None, r"^precision: expected 'float32' for a .*float64"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(settings, held_out, message):
    with pytest.raises(ValueError, match=message):
        pg.Trainer(small_gebm().double(), pg.TrainConfig(**settings), held_out=held_out)


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"objective": "gan", "refit_steps": 0}, "fit"),
        ({"mode": "base", "log_partition_update": "closed_form"}, "fit"),
        ({"objective": "donsker_varadhan"}, "refit_energy"),
    ],
)
def test_an_energy_with_nothing_to_learn_is_refused(settings, method):
    gebm = small_gebm()
    gebm.energy.requires_grad_(False)
    before = copy.deepcopy(gebm.state_dict())
    with pytest.raises(ValueError, match=r"^energy: expected parameters"):
        list(getattr(pg.Trainer(gebm, pg.TrainConfig(**settings)), method)([data().float()]))
    torch.testing.assert_close(gebm.state_dict(), before, rtol=0, atol=0)


def test_under_a_fixed_energy_the_base_and_c_still_learn():
    gebm = small_gebm()
    gebm.energy.requires_grad_(False)
    config = pg.TrainConfig(mode="base", base_steps=2, refit_steps=0)
    assert last(pg.Trainer(gebm, config).fit([data().float()])).step == 2
    config = pg.TrainConfig(refit_steps=2, log_partition_lr=0.5)
    infos = list(pg.Trainer(gebm, config).refit_energy([data().float()]))
    assert infos[0].log_partition != infos[1].log_partition
