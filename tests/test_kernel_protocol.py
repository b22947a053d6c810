"""What every kernel promises. A new kernel joins by its line in ``mcmc.KERNELS``."""

import pytest
import torch
from helpers import Counting, gumbel, make_tuning, normal, rng, run_chain
from torch import nn

from pyro_gebm.mcmc import HMC, KERNELS, NUTS, Info, Langevin

STEP_SIZE = 0.9  # Metropolis kernels accept about 2 of 3 on ``gumbel``

# A kernel that needs settings for a quick test gets them here.
SETTINGS = {"NUTS": {"max_tree_depth": 6}}

FLOAT_FIELDS = ("accept_prob", "hamiltonian", "energy_error", "max_energy_error")
INT_FIELDS = ("num_steps", "tree_depth")
BOOL_FIELDS = ("diverging", "reached_max_treedepth")


@pytest.fixture(params=list(KERNELS))
def kernel(request):
    return KERNELS[request.param](**SETTINGS.get(request.param, {}))


def starts(chains=16, dim=3, dtype=torch.float64):
    return torch.randn(chains, dim, generator=rng(1), dtype=torch.float64).to(dtype)


def same(state, other, chain):
    return all(torch.equal(a[chain], b[chain]) for a, b in zip(state, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(kernel, dtype):
    z = starts(dtype=dtype)
    state, info = run_chain(kernel, gumbel, z, make_tuning(z, STEP_SIZE), 2)[-1]
    assert [tuple(field.shape) for field in state] == [(16, 3), (16,), (16, 3)]
    assert all(field.dtype == dtype and not field.requires_grad for field in state)
    assert {"accept_prob", "diverging", "num_steps"} <= present(info).keys()
    for name, field in present(info).items():
        wanted = dtype if name in FLOAT_FIELDS else torch.bool if name in BOOL_FIELDS else None
        assert field.shape == (16,)
        assert field.dtype == (wanted or torch.int64)
    assert ((info.accept_prob >= 0) & (info.accept_prob <= 1)).all()


def present(info):
    return {name: field for name, field in info._asdict().items() if field is not None}


def test_info_fields_are_all_classified():
    assert set(Info._fields) == {*FLOAT_FIELDS, *INT_FIELDS, *BOOL_FIELDS}


def test_state_is_what_a_fresh_evaluation_gives(kernel):
    # Energy and gradient of a rejected proposal must not stay behind.
    z = starts()
    before = z
    moved = []
    for state, _ in run_chain(kernel, gumbel, z, make_tuning(z, STEP_SIZE), 20):
        fresh = kernel.init(gumbel, state.z)
        assert torch.equal(state.potential_energy, fresh.potential_energy)
        assert torch.equal(state.z_grad, fresh.z_grad)
        moved.append((state.z != before).any(-1))
        before = state.z
    share = torch.stack(moved).double().mean()
    assert share == 1 if isinstance(kernel, Langevin) else 0.3 < share < 1


def test_num_steps_counts_gradients(kernel):
    z = starts()
    potential = Counting(gumbel)
    state = kernel.init(potential, z)
    assert potential.calls == 1
    generator = rng()
    for _ in range(5):
        calls = potential.calls
        state, info = kernel.step(potential, state, make_tuning(z, 0.3), generator=generator)
        # All chains advance in lock-step: the longest trajectory makes the calls.
        assert potential.calls - calls == info.num_steps.max()
        assert info.num_steps.min() >= 1


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


def test_chain_does_not_depend_on_the_others(kernel):
    z = starts(6)
    other = z.clone()
    other[2:] = 40 * starts(4) + 200
    tuning = make_tuning(z, 0.3)
    ours = run_chain(kernel, gumbel, z, tuning, 8)
    theirs = run_chain(kernel, gumbel, other, tuning, 8)
    for (state, info), (state_2, info_2) in zip(ours, theirs, strict=True):
        assert not same(state, state_2, slice(2, None))
        assert same(state, state_2, slice(0, 2))
        assert same(present(info).values(), present(info_2).values(), slice(0, 2))


def test_chain_does_not_see_the_nan_of_another(kernel):
    def broken(z):
        return torch.where(z[:, 0] > 50, torch.nan, gumbel(z))

    z = starts(4)
    other = z.clone()
    other[3] = 100.0
    tuning = make_tuning(z, 0.3)
    ours, theirs = (run_chain(kernel, broken, start, tuning, 8) for start in (z, other))
    for (state, _), (state_2, info_2) in zip(ours, theirs, strict=True):
        assert same(state, state_2, slice(0, 3))
        assert torch.equal(state_2.z[3], other[3])
        assert info_2.diverging[3] and info_2.accept_prob[3] == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_proposals_are_rejected_and_counted(kernel, bad):
    def walled(z):
        return torch.where((z.abs() > 1).any(-1), bad, normal(z))

    z = torch.zeros(50, 2, dtype=torch.float64)
    history = run_chain(kernel, walled, z, make_tuning(z, 0.8), 20)
    for state, info in history:
        assert (state.z.abs() <= 1).all()
        assert torch.isfinite(state.potential_energy).all()
        assert torch.isfinite(info.accept_prob).all()
        if info.max_energy_error is not None:
            assert (info.max_energy_error[info.diverging] == torch.inf).all()
    diverging = torch.stack([info.diverging for _, info in history])
    # One leapfrog step of 0.8 leaves the box with probability about 0.4.
    assert 0.1 < diverging.double().mean() < 0.95
    if not isinstance(kernel, NUTS):  # whose draw may come from before the divergence
        path = torch.stack([z, *(state.z for state, _ in history)])
        assert torch.equal(path[1:][diverging], path[:-1][diverging])


def test_non_finite_gradient_is_rejected(kernel):
    class CutGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return normal(z)

        @staticmethod
        def backward(ctx, grad):
            (z,) = ctx.saved_tensors
            return torch.where(z.abs() > 1, torch.nan, z) * grad[:, None]

    z = torch.zeros(50, 2, dtype=torch.float64)
    history = run_chain(kernel, CutGradient.apply, z, make_tuning(z, 0.8), 20)
    assert any(info.diverging.any() for _, info in history)
    assert all(torch.isfinite(state.z_grad).all() for state, _ in history)


def test_energy_error_above_the_threshold_diverges(kernel):
    def step_up(z):
        return torch.where(z[:, 0] > 0, 1001.0 + 0.0 * z[:, 0], 0.0 * z[:, 0])

    z = torch.full((200, 1), -1e-3, dtype=torch.float64)
    state, info = run_chain(kernel, step_up, z, make_tuning(z, 0.5), 1)[0]
    assert 0.2 < info.diverging.double().mean() < 1  # half of the momenta point over the step
    assert (state.z <= 0).all()


@pytest.mark.parametrize("weight", [None, nn.Parameter(torch.ones(()))], ids=["constant", "weight"])
def test_flat_potential_ends(kernel, weight):
    def flat(z):
        return torch.zeros(len(z), dtype=z.dtype) if weight is None else weight.expand(len(z))

    z = starts()
    for state, info in run_chain(kernel, flat, z, make_tuning(z, 1.0), 3):
        assert (info.accept_prob == 1).all()
        assert not info.diverging.any()
        assert (state.z_grad == 0).all()
    assert (state.z != z).all()


def test_positions_that_overflow_are_not_stored(kernel):
    # A flat potential is finite wherever a step of 1e38 leads; float32 ends at 3.4e38.
    z = starts(dtype=torch.float32)
    tuning = make_tuning(z, 1e38)
    history = run_chain(kernel, lambda z: torch.zeros_like(z[:, 0]), z, tuning, 10)
    assert any(info.diverging.any() for _, info in history)
    assert all(torch.isfinite(state.z).all() for state, _ in history)


def test_parameters_are_untouched(kernel):
    energy = nn.Linear(3, 1).double()
    z = starts().requires_grad_(True)
    before = [parameter.clone() for parameter in energy.parameters()]

    def potential(z):
        return normal(z) + energy(z)[:, 0]

    run_chain(kernel, potential, z, make_tuning(z.detach(), 0.5), 3)
    assert all(p.grad is None and p.requires_grad for p in energy.parameters())
    assert all(torch.equal(p, old) for p, old in zip(energy.parameters(), before, strict=True))
    assert z.grad is None


def test_generator_decides_the_draws(kernel):
    z = starts()
    tuning = make_tuning(z, STEP_SIZE)
    global_state = torch.get_rng_state()
    once, again = (run_chain(kernel, gumbel, z, tuning, 5, seed=3)[-1][0] for _ in range(2))
    other = run_chain(kernel, gumbel, z, tuning, 5, seed=4)[-1][0]
    assert torch.equal(once.z, again.z)
    assert not torch.equal(once.z, other.z)
    assert torch.equal(torch.get_rng_state(), global_state)


def test_settings_are_checked(kernel):
    for bad in (0.0, -1.0, float("nan"), float("inf"), "0.1"):
        with pytest.raises(ValueError, match=r"step_size: expected .* got"):
            type(kernel)(step_size=bad)
