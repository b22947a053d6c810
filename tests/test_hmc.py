"""How long the trajectories of HMC and ChEES are, and how ChEES learns it."""

import math

import pytest
import torch
from helpers import Counting, make_tuning, normal, rng, run_chain

from pyro_gebm.mcmc import HMC, MALA, ChEES
from pyro_gebm.mcmc.chees import THRIFT, chees_gradient
from pyro_gebm.mcmc.integrators import trajectory
from pyro_gebm.mcmc.kernel import evaluate
from pyro_gebm.mcmc.random import Streams


def starts(chains=16, dtype=torch.float64):
    return torch.randn(chains, 3, generator=rng(1), dtype=torch.float64).to(dtype)


# The last: 1.4 / 0.7 is a little above 2 when 0.7 is rounded to float32.
@pytest.mark.parametrize(
    ("length", "step_size", "steps"),
    [(1.0, 0.25, 4), (1.0, 0.3, 4), (1.0, 0.34, 3), (1.0, 5.0, 1), (1.4, 0.7, 2)],
)
def test_hmc_takes_length_over_step_size_steps(length, step_size, steps):
    z = starts(dtype=torch.float32)
    potential = Counting(normal)
    kernel = HMC(trajectory_length=length, jitter=0.0)
    _, info = run_chain(kernel, potential, z, make_tuning(z, step_size), 1)[0]
    assert potential.calls == 1 + steps
    assert (info.num_steps == steps).all()


def test_hmc_jitter_spreads_the_lengths():
    z = starts(2)
    kernel = HMC(trajectory_length=1.0, jitter=0.5)
    history = run_chain(kernel, normal, z, make_tuning(z, 0.05), 200)
    lengths = torch.stack([info.num_steps[0] for _, info in history]) * 0.05
    # U(0.5, 1.5), rounded up to steps of 0.05, which adds 0.025 to its mean; 4 SE.
    assert abs(lengths.mean() - 1.025) < 4 * 12**-0.5 / 200**0.5
    assert abs(lengths.std() - 12**-0.5) < 4 * 0.2 / 200**0.5
    assert lengths.min() < 0.6
    assert 1.45 < lengths.max() < 1.51


def test_hmc_limits_the_steps():
    z = starts()
    kernel = HMC(max_num_steps=7)
    for step_size in (1e-3, 0.0):
        _, info = run_chain(kernel, normal, z, make_tuning(z, step_size), 1)[0]
        assert (info.num_steps == 7).all()


def test_chees_spreads_the_lengths_evenly():
    # Over 64 steps of a stream, each 64th of (τ/5, τ) is met once: van der Corput.
    z = starts(2)
    tuning = make_tuning(z, 0.01)._replace(trajectory_length=torch.tensor(1.0))
    kernel, streams = ChEES(), Streams(3, 2, z.device)
    state = kernel.init(normal, z)
    lengths = []
    for step in range(63, 127):
        state, info = kernel.step(normal, state, tuning, generator=streams.at(step))
        assert torch.equal(info.trajectory_length, info.num_steps * tuning.step_size)
        lengths.append(float(info.trajectory_length[0]))
    # Steps round a length up by at most 0.01.
    gaps = torch.tensor(lengths).sort().values.diff()
    assert (gaps - 0.8 / 64).abs().max() < 0.0101
    assert max(lengths) > 1 - 0.8 / 64 and 0.2 < min(lengths) < 0.2 + 0.8 / 64 + 0.01


def test_settled_again_after_a_change_it_is_not_what_it_was():
    z = starts(20)
    tuning, other = make_tuning(z, 0.1), make_tuning(z, 0.3)
    again = tuning.settled()._replace(step_size=other.step_size).settled()
    drift, kick, half_kick = other.strides()
    assert all(map(torch.equal, again.strides(), (drift, kick, half_kick)))
    assert torch.equal(half_kick, 0.5 * kick)
    assert again.typical_step() == other.typical_step() == float(other.step_size[0])


@pytest.mark.parametrize("kernel", [HMC(), ChEES(), MALA()])
@pytest.mark.parametrize("longest", [None, 0.7])
@pytest.mark.parametrize("curvature", [None, 1.5])
def test_a_settled_tuning_moves_chains_alike(kernel, longest, curvature):
    z = starts(20)
    length = None if longest is None else torch.tensor(longest, dtype=z.dtype)
    sizes = 0.1 + 0.1 * torch.rand(20, generator=rng(), dtype=z.dtype)
    tuning = make_tuning(z, 0.1, curvature=curvature)
    tuning = tuning._replace(step_size=sizes, trajectory_length=length)
    plain, settled = (
        run_chain(kernel, normal, z, each, 5)[-1] for each in (tuning, tuning.settled())
    )
    assert all(map(torch.equal, plain[0][:3], settled[0][:3]))
    assert torch.equal(plain[1].num_steps, settled[1].num_steps)


def test_chees_limits_the_steps():
    z = starts()
    tuning = make_tuning(z, 1e-3)
    _, info = run_chain(ChEES(max_num_steps=5), normal, z, tuning, 1)[0]
    assert (info.num_steps == 5).all()


@pytest.mark.parametrize("num_steps", [60, 150, 260])
def test_chees_gradient_is_that_of_its_criterion(num_steps):
    # On N(0, I) the flow is q cos t + p sin t. With (q, p) and (-q, -p) in pairs the means
    # are zero, and what is left is the error O(ε²) of leapfrog.
    noise = torch.randn(2, 200, 3, generator=rng(4), dtype=torch.float64)
    z, momentum = torch.cat([noise, -noise], 1)
    step = 0.01

    def criterion(log_time):
        time = log_time.exp()
        end = z * time.cos() + momentum * time.sin()
        change = end.square().sum(-1) - z.square().sum(-1)
        return 0.25 * change.square().mean() / (time / time.detach()) ** THRIFT

    log_time = torch.tensor(math.log(num_steps * step), dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(criterion(log_time), log_time)
    # The same in stretched coordinates, which the mass matrix undoes.
    scales = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    tuning = make_tuning(z, step, scales**2)
    start = evaluate(lambda z: normal(z / scales), z * scales)
    proposal = trajectory(lambda z: normal(z / scales), start, tuning, num_steps, momentum)
    assert exact.abs() > 0.1
    torch.testing.assert_close(chees_gradient(start.z, proposal, tuning), exact, rtol=1e-3, atol=0)
