"""What every kernel promises. A new kernel joins by its line in ``mcmc.KERNELS``."""

from dataclasses import replace

import pytest
import torch
from helpers import Counting, gumbel, make_tuning, normal, rng, run_chain, with_reference
from torch import nn

from pyro_gebm.mcmc import HMC, IMH, KERNELS, NUTS, ChEES, Info, Kinetic, Langevin
from pyro_gebm.mcmc.tempering import ReplicaExchange

STEP_SIZE = 0.9  # Metropolis kernels accept about 2 of 3 on ``gumbel``

# A kernel that needs settings for a quick test gets them here.
SETTINGS = {"NUTS": {"max_tree_depth": 6}}
VARIANTS = {
    "Kinetic ABOBA": Kinetic(scheme="ABOBA"),
    "learning ChEES": ChEES().for_warmup(),
    # The first half of its chains are at λ = 0.5, the others at 1.
    "tempered HMC": ReplicaExchange(local=HMC(), ladder=(0.5, 1.0), reference=None),
}
ALL_KERNELS = {name: KERNELS[name](**SETTINGS.get(name, {})) for name in KERNELS} | VARIANTS

FLOAT_FIELDS = ("accept_prob", "hamiltonian", "energy_error", "max_energy_error")
FLOAT_FIELDS += ("trajectory_length", "length_gradient", "global_accept_prob", "swap_accept_prob")
INT_FIELDS = ("num_steps", "tree_depth")
BOOL_FIELDS = ("diverging", "reached_max_treedepth")

PROPOSING = (IMH, ReplicaExchange)
"""Kernels that draw from a reference."""


@pytest.fixture(params=ALL_KERNELS)
def kernel(request):
    return ALL_KERNELS[request.param]


def starts(chains=16, dim=3, dtype=torch.float64):
    return torch.randn(chains, dim, generator=rng(1), dtype=torch.float64).to(dtype)


def present(fields):
    return {name: field for name, field in fields._asdict().items() if field is not None}


def same(ours, theirs, rows):
    """Bit for bit, in some rows; the length gradient is of the whole batch."""
    ours, theirs = present(ours), present(theirs)
    assert ours.keys() == theirs.keys()
    pairs = [(ours[name][rows], theirs[name][rows]) for name in ours.keys() - {"length_gradient"}]
    return all(((a == b) | (a.isnan() & b.isnan())).all() for a, b in pairs)


def rows_of(kernel, rows, chains):
    """Which of the batch's rows belong to ``chains``: a bool mask over ``rows``."""
    return torch.isin(torch.arange(rows) % (rows // kernel.num_levels), torch.tensor(chains))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(kernel, dtype):
    z = starts(dtype=dtype)
    state, info = run_chain(kernel, gumbel, z, make_tuning(z, STEP_SIZE), 2)[-1]
    shapes = {"z": (16, 3), "potential_energy": (16,), "z_grad": (16, 3)}
    if isinstance(kernel, Kinetic):
        shapes["momentum"] = (16, 3)
    assert {name: tuple(field.shape) for name, field in present(state).items()} == shapes
    assert all(f.dtype == dtype and not f.requires_grad for f in present(state).values())
    assert {"accept_prob", "diverging", "num_steps"} <= present(info).keys()
    for name, field in present(info).items():
        wanted = dtype if name in FLOAT_FIELDS else torch.bool if name in BOOL_FIELDS else None
        assert field.shape == (16,)
        assert field.dtype == (wanted or torch.int64)
    assert ((info.accept_prob >= 0) & (info.accept_prob <= 1)).all()


def test_info_fields_are_all_classified():
    assert set(Info._fields) == {*FLOAT_FIELDS, *INT_FIELDS, *BOOL_FIELDS}


def test_state_is_what_a_fresh_evaluation_gives(kernel):
    # Energy and gradient of a rejected proposal must not stay behind.
    z = starts()
    before = z
    moved = []
    for state, _ in run_chain(kernel, gumbel, z, make_tuning(z, STEP_SIZE), 20):
        fresh = with_reference(kernel, z).init(gumbel, state.z)
        assert torch.equal(state.potential_energy, fresh.potential_energy)
        assert torch.equal(state.z_grad, fresh.z_grad)
        moved.append((state.z != before).any(-1))
        before = state.z
    share = torch.stack(moved).double().mean()
    assert share == 1 if isinstance(kernel, Langevin | Kinetic) else 0.3 < share < 1


def test_num_steps_counts_gradients(kernel):
    z = starts()
    potential = Counting(gumbel)
    kernel = with_reference(kernel, z)
    state = kernel.init(potential, z)
    assert potential.calls == 1
    generator = rng()
    # Replica exchange evaluates fresh draws from the reference, too, without gradient.
    forward = isinstance(kernel, ReplicaExchange)
    for _ in range(5):
        calls = potential.calls
        state, info = kernel.step(potential, state, make_tuning(z, 0.3), generator=generator)
        # All chains advance in lock-step: the longest trajectory makes the calls.
        assert potential.calls - calls == info.num_steps.max() + forward
        assert info.num_steps.min() >= 1


def test_chain_does_not_depend_on_the_others(kernel):
    z = starts(6)
    kept = rows_of(kernel, 6, [0, 1])
    other = torch.where(kept[:, None], z, 40 * starts(6) + 200)
    tuning = make_tuning(z, 0.3)
    ours = run_chain(kernel, gumbel, z, tuning, 8)
    theirs = run_chain(kernel, gumbel, other, tuning, 8)
    for (state, info), (state_2, info_2) in zip(ours, theirs, strict=True):
        assert not same(state, state_2, ~kept)
        assert same(state, state_2, kept)
        assert same(info, info_2, kept)


def test_chain_does_not_see_the_nan_of_another(kernel):
    def broken(z):
        return torch.where(z[:, 0] > 50, torch.nan, gumbel(z))

    z = starts(4)
    other = z.clone()
    other[3] = 100.0
    kept = ~rows_of(kernel, 4, [3 % (4 // kernel.num_levels)])
    tuning = make_tuning(z, 0.3)
    ours, theirs = (run_chain(kernel, broken, start, tuning, 8) for start in (z, other))
    for (state, _), (state_2, info_2) in zip(ours, theirs, strict=True):
        assert same(state, state_2, kept)
        assert torch.equal(state_2.z[3], other[3])
        assert info_2.diverging[3] and info_2.accept_prob[3] == 0


def test_masses_may_differ_by_chain(kernel):
    # Each chain moves as it would in a batch where all have its mass matrix.
    z = starts(6)
    mass = torch.tensor([[0.5, 1.0, 2.0], [3.0, 0.2, 1.0]], dtype=torch.float64)
    even = torch.arange(6) % 2 == 0
    even = even if kernel.num_levels == 1 else rows_of(kernel, 6, [0, 2])
    own = make_tuning(z, 0.3, torch.where(even[:, None], *mass))
    mixed = run_chain(kernel, gumbel, z, own, 4)
    for rows, diagonal in ((even, mass[0]), (~even, mass[1])):
        shared = run_chain(kernel, gumbel, z, make_tuning(z, 0.3, diagonal), 4)
        for (state, info), (state_2, info_2) in zip(mixed, shared, strict=True):
            assert same(state, state_2, rows)
            assert same(info, info_2, rows)


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
    # The draw of NUTS may come from before the divergence, and an exchange after it.
    if not isinstance(kernel, NUTS | ReplicaExchange):
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
    if isinstance(kernel, PROPOSING):  # which go where the density is, gradient or not
        assert all(torch.isfinite(state.potential_energy).all() for state, _ in history)
        return
    assert any(info.diverging.any() for _, info in history)
    if kernel != VARIANTS["Kinetic ABOBA"]:  # which has no use for the gradient where it ends
        assert all(torch.isfinite(state.z_grad).all() for state, _ in history)


def test_energy_error_above_the_threshold_diverges(kernel):
    def step_up(z):
        return torch.where(z[:, 0] > 0, 1001.0 + 0.0 * z[:, 0], 0.0 * z[:, 0])

    z = torch.full((200, 1), -1e-3, dtype=torch.float64)
    state, info = run_chain(kernel, step_up, z, make_tuning(z, 0.5), 1)[0]
    assert (state.z <= 0).all()
    if not isinstance(kernel, PROPOSING):  # no trajectory, or half of the step at λ = 0.5
        assert 0.2 < info.diverging.double().mean() < 1  # half of the momenta point over it


WEIGHT = nn.Parameter(torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["constant", "weight"])
def test_flat_potential_ends(kernel, weight):
    def flat(z):
        return torch.zeros(len(z), dtype=z.dtype) if weight is None else weight.expand(len(z))

    if isinstance(kernel, PROPOSING):
        pytest.skip("the reference is not flat")
    z = starts()
    # Kinetic subtracts the energy that its noise brought, and rounds.
    rounding = 1e-12 if isinstance(kernel, Kinetic) else 0.0
    for state, info in run_chain(kernel, flat, z, make_tuning(z, 1.0), 3):
        assert (info.accept_prob >= 1 - rounding).all()
        assert not info.diverging.any()
        assert (state.z_grad == 0).all()
    assert (state.z != z).all()


def test_positions_that_overflow_are_not_stored(kernel):
    # A flat potential is finite wherever a step of 1e38 leads; float32 ends at 3.4e38.
    z = starts(dtype=torch.float32)
    tuning = make_tuning(z, 1e38)
    history = run_chain(kernel, lambda z: torch.zeros_like(z[:, 0]), z, tuning, 10)
    if not isinstance(kernel, IMH):  # whose proposals never overflow
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
    once = run_chain(kernel, gumbel, z, tuning, 5, seed=3)[-1][0]
    # References draw from the global generator, which the kernel seeds.
    assert isinstance(kernel, PROPOSING) or torch.equal(torch.get_rng_state(), global_state)
    torch.manual_seed(17)
    again = run_chain(kernel, gumbel, z, tuning, 5, seed=3)[-1][0]
    other = run_chain(kernel, gumbel, z, tuning, 5, seed=4)[-1][0]
    assert torch.equal(once.z, again.z)
    assert not torch.equal(once.z, other.z)


def test_settings_are_checked(kernel):
    for bad in (0.0, -1.0, float("nan"), float("inf"), "0.1"):
        with pytest.raises(ValueError, match=r"step_size: expected .* got"):
            replace(kernel, step_size=bad)


def test_imh_needs_a_reference():
    z = starts()
    kernel = IMH()
    with pytest.raises(ValueError, match="IMH: expected a reference to propose from; got None"):
        kernel.step(normal, kernel.init(normal, z), make_tuning(z, 1.0), generator=rng())
