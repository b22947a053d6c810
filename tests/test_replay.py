"""The replay buffer against the law of discretised Langevin, steps by hand and bad energies."""

import math

import pytest
import torch
from torch import nn

from pyro_gebm.training.replay import ReplayBuffer


def normal_energy(x):
    """Minus the log density of N(0, I), up to a constant."""
    return 0.5 * x.flatten(1).square().sum(dim=1)


def zeros(n):
    return torch.zeros(n, 2)


SETTINGS = {
    "steps": 3,
    "step_size": 0.1,
    "noise": math.sqrt(0.2),
    "restart_probability": 0.0,
    "fresh": zeros,
}


def draw(buffer, num_samples, energy_fn=normal_energy, **settings):
    return buffer.draw(energy_fn, num_samples, **{**SETTINGS, **settings})


# --- the law ------------------------------------------


@pytest.mark.parametrize(("step_size", "temperature"), [(0.2, 1.0), (0.8, 1.0), (0.5, 0.25)])
def test_long_run_law_is_that_of_discretised_langevin(step_size, temperature):
    # x' = (1 - γ) x + s ξ has variance s²/(1 - (1 - γ)²) = T/(1 - γ/2) at s² = 2γT. The chains
    # are independent, so the variance of n values has relative standard error √(2/n).
    torch.manual_seed(0)
    noise = math.sqrt(2 * step_size * temperature)
    buffer = ReplayBuffer(torch.full((4000, 2), 3.0, dtype=torch.float64))
    for _ in range(120):  # the start is forgotten as (1 - γ)^steps: 60 draws of 2 steps each
        draw(buffer, 2000, steps=2, step_size=step_size, noise=noise)
    x = buffer.positions.flatten()
    variance = temperature / (1 - step_size / 2)
    assert abs(x.mean().item()) < 4 * math.sqrt(variance / len(x))
    assert x.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / len(x)))


def test_a_draw_is_the_steps_by_hand_written_back_to_its_rows():
    start = torch.randn(6, 1, 2, generator=torch.Generator().manual_seed(1))
    buffer = ReplayBuffer(start)
    torch.manual_seed(2)
    drawn = draw(buffer, 4, lambda x: x.pow(4).sum(dim=(1, 2)), fresh=torch.zeros)
    torch.manual_seed(2)
    rows = torch.randperm(6)[:4]
    torch.rand(4)  # who restarts
    x = start[rows]
    for _ in range(3):
        x = x - 0.1 * 4 * x.pow(3) + math.sqrt(0.2) * torch.randn(4, 1, 2)
    torch.testing.assert_close(drawn.x, x)
    expected = start.clone()
    expected[rows] = drawn.x
    assert torch.equal(buffer.positions, expected)
    assert drawn[1:] == (12, 0, 0)


def test_steps_without_noise_go_downhill():
    buffer = ReplayBuffer(torch.ones(5, 2))
    drawn = draw(buffer, 5, steps=2, step_size=0.25, noise=0.0)
    assert torch.equal(drawn.x, torch.full((5, 2), 0.75**2))


# --- restarts ------------------------------------------


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_the_share_of_restarts_and_where_they_start(probability):
    torch.manual_seed(3)
    buffer, asked = ReplayBuffer(torch.zeros(5000, 1)), []

    def fresh(n):
        asked.append(n)
        return torch.full((n, 1), 7.0)

    drawn = draw(
        buffer,
        5000,
        lambda x: 0 * x[:, 0],
        noise=0.0,
        restart_probability=probability,
        fresh=fresh,
    )
    restarted = int((drawn.x == 7).sum())
    assert drawn.num_restarted == restarted == sum(asked)
    spread = math.sqrt(probability * (1 - probability) / 5000)
    assert abs(restarted / 5000 - probability) <= 4 * spread
    assert int((buffer.positions == 0).sum()) == 5000 - restarted


# --- what cannot go on ------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_energies_are_replaced_and_counted(bad):
    # Only the energy is bad on the right, not its gradient: the positions stay finite.
    def energy(x):
        right = torch.where(x[:, 0] > 5, bad, 0.0)
        return normal_energy(x) + right

    start = torch.zeros(10, 2)
    start[[2, 5, 6]] = 50.0
    torch.manual_seed(4)
    buffer = ReplayBuffer(start)
    drawn = draw(buffer, 10, energy, step_size=0.01, noise=0.01, fresh=lambda n: -torch.ones(n, 2))
    assert drawn.num_lost == 3
    assert int((drawn.x == -1).all(dim=1).sum()) == 3
    assert drawn.x.isfinite().all()
    assert buffer.positions.isfinite().all()
    assert int((buffer.positions == -1).all(dim=1).sum()) == 3

    # The other chains are what they would have been.
    torch.manual_seed(4)
    others = draw(ReplayBuffer(start), 10, step_size=0.01, noise=0.01)
    good = (drawn.x != -1).all(dim=1)
    assert torch.equal(drawn.x[good], others.x[good])


def test_chains_that_run_off_to_infinity_are_replaced_and_counted():
    buffer = ReplayBuffer(torch.tensor([[1e30, 0.0], [0.0, 0.0]]))
    drawn = draw(buffer, 2, lambda x: -0.5 * x.square().sum(1), step_size=1e9, noise=0.0, steps=1)
    # The energy of the first chain overflows; the second stays at its saddle.
    assert drawn.num_lost == 1
    assert torch.equal(drawn.x, torch.zeros(2, 2))
    finite_energy = ReplayBuffer(torch.tensor([[1e18, 0.0]]))
    drawn = draw(
        finite_energy, 1, lambda x: -0.5 * x.square().sum(1), step_size=1e30, noise=0.0, steps=1
    )
    assert drawn.num_lost == 1  # only the position overflowed
    assert torch.equal(drawn.x, torch.zeros(1, 2))


def test_an_error_leaves_the_buffer_as_it_was():
    start, calls = torch.randn(4, 2), []

    def energy(x):
        calls.append(x)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return normal_energy(x)

    buffer = ReplayBuffer(start)
    with pytest.raises(KeyboardInterrupt):
        draw(buffer, 4, energy)
    assert torch.equal(buffer.positions, start)


# --- gradients and ownership ------------------------------------------


def test_parameters_get_no_gradient_and_draws_carry_none():
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    buffer = ReplayBuffer(torch.randn(8, 2))
    attached = torch.ones(2, requires_grad=True)
    with torch.no_grad():  # works inside, too
        drawn = draw(buffer, 8, net, restart_probability=1.0, fresh=lambda n: attached.expand(n, 2))
    assert drawn.num_restarted == 8
    drawn = draw(buffer, 8, net, restart_probability=1.0, fresh=lambda n: attached.expand(n, 2))
    assert not drawn.x.requires_grad
    assert not buffer.positions.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_buffer_shares_memory_with_nobody():
    start = torch.zeros(3, 2)
    buffer = ReplayBuffer(start)
    start += 1
    drawn = draw(buffer, 3, noise=0.0)
    drawn.x.add_(1)
    buffer.positions.add_(1)
    buffer.state_dict()["positions"].add_(1)
    assert torch.equal(buffer.positions, torch.zeros(3, 2))


# --- resume ------------------------------------------


def test_resume_is_bit_exact():
    torch.manual_seed(5)
    buffer = ReplayBuffer(torch.randn(20, 2))
    chance = {"restart_probability": 0.3, "fresh": lambda n: torch.randn(n, 2)}
    draw(buffer, 8, **chance)
    saved, generator = buffer.state_dict(), torch.get_rng_state()
    expected = [draw(buffer, 8, **chance).x for _ in range(5)]
    again = ReplayBuffer(torch.zeros(20, 2))
    again.load_state_dict(saved)
    torch.set_rng_state(generator)
    for x in expected:
        assert torch.equal(draw(again, 8, **chance).x, x)
    assert torch.equal(again.positions, buffer.positions)


@pytest.mark.parametrize(
    "saved", [torch.zeros(3, 2), torch.zeros(4, 1), torch.zeros(4, 2).double()]
)
def test_the_state_of_another_buffer_is_refused(saved):
    buffer = ReplayBuffer(torch.ones(4, 2))
    with pytest.raises(ValueError, match=r"positions: expected shape \(4, 2\) and torch.float32"):
        buffer.load_state_dict({"positions": saved})
    assert torch.equal(buffer.positions, torch.ones(4, 2))


# --- refusals ------------------------------------------


@pytest.mark.parametrize(
    "positions",
    [torch.zeros(0, 2), torch.tensor(1.0), torch.zeros(3, 2).long(), torch.tensor([[math.nan]])],
)
def test_bad_positions_are_refused(positions):
    with pytest.raises(ValueError, match="positions: expected"):
        ReplayBuffer(positions)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 5}, "num_samples: expected at most 4.*got 5"),
        ({"num_samples": 0}, "num_samples: .*got 0"),
        ({"steps": 0}, "steps: .*got 0"),
        ({"step_size": 0.0}, r"step_size: .*got 0\.0"),
        ({"noise": -1.0}, r"noise: .*got -1\.0"),
        ({"restart_probability": 1.5}, r"restart_probability: .*got 1\.5"),
        ({"energy_fn": lambda x: x}, r"energy_fn: .*got \(4, 2\)"),
        ({"energy_fn": lambda x: x.sum()}, r"energy_fn: .*got \(\)"),
        ({"restart_probability": 1.0, "fresh": lambda n: torch.zeros(n, 3)}, r"fresh: .*\(B, 2\)"),
        ({"restart_probability": 1.0, "fresh": lambda n: torch.zeros(1, 2)}, "fresh: .*got 1"),
        (
            {"restart_probability": 1.0, "fresh": lambda n: torch.full((n, 2), math.inf)},
            "fresh: expected finite.*got inf",
        ),
    ],
)
def test_refusals_say_what_came(settings, message):
    buffer = ReplayBuffer(torch.ones(4, 2))
    with pytest.raises(ValueError, match=message):
        draw(buffer, **{"num_samples": 4, **settings})
    assert torch.equal(buffer.positions, torch.ones(4, 2))
