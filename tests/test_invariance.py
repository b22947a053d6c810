"""Every kernel leaves its target invariant; each planted bug is seen by the same test."""

import pytest
import torch
from exact import CHAINS, FAIL, PASS, boxed, exact_draws, near_skewed, p_value, skewed, transit
from helpers import make_tuning, normal, rng, run_chain
from scipy import stats

from pyro_gebm.mcmc import (
    HMC,
    IMH,
    MALA,
    NUTS,
    ChEES,
    Kinetic,
    Langevin,
    hmc,
    imh,
    integrators,
    nuts,
)
from pyro_gebm.mcmc.kernel import acceptance, select

# kernel, step size for an acceptance between 0.6 and 0.9
KERNELS = {
    "HMC": (HMC(), 0.85),
    "ChEES": (ChEES(), 0.85),
    "MALA": (MALA(), 0.95),
    "NUTS": (NUTS(max_tree_depth=4), 0.8),
    "IMH": (IMH(reference=near_skewed()), 1.0),
}


def test_exact_draws_are_exact():
    assert p_value(exact_draws()) > PASS


@pytest.mark.parametrize("name", KERNELS)
def test_invariant(name):
    start = exact_draws()
    # A mass matrix other than one: it must not matter.
    mass = torch.tensor([1.3, 0.8])
    z, accept = transit(*KERNELS[name], skewed, start, mass)
    assert (0.5 if name == "IMH" else 0.6) < accept < 0.9
    assert (z != start).any(-1).double().mean() > 0.99
    assert p_value(z) > PASS


@pytest.mark.parametrize("name", ["HMC", "ChEES", "MALA", "NUTS"])
def test_fitted_steps_are_invariant(name):
    kernel, step_size = KERNELS[name]
    mass = torch.tensor([1.3, 0.8])
    z, accept = transit(kernel, step_size, skewed, exact_draws(), mass, curvature=1.5)
    assert 0.6 < accept < 0.95
    assert p_value(z) > PASS


@pytest.mark.parametrize("name", ["HMC", "ChEES", "MALA", "NUTS"])
def test_a_curvature_that_follows_the_chain_is_seen(name, monkeypatch):
    # Reversible no more: a step back would be of another length than the step there.
    def greedy(potential_fn, z, gradient, flow, drift, kick):
        return honest(potential_fn, z, gradient, flow, drift / (1 + gradient.abs()), kick)

    def greedy_leapfrog(potential_fn, state, momentum, drift, kick):
        return leap(potential_fn, state, momentum, drift / (1 + state.z_grad.abs()), kick)

    honest, leap = integrators.hop, integrators.leapfrog
    monkeypatch.setattr(integrators, "hop", greedy)
    monkeypatch.setattr(hmc, "hop", greedy)
    monkeypatch.setattr(nuts, "leapfrog", greedy_leapfrog)
    z, _ = transit(*KERNELS[name], skewed, exact_draws())
    assert p_value(z) < FAIL


@pytest.mark.parametrize("name", ["HMC", "ChEES", "MALA", "IMH"])
def test_square_rooted_acceptance_is_seen(name, monkeypatch):
    def rooted(energy_error, end):
        accept_prob, diverging = acceptance(energy_error, end)
        return accept_prob.sqrt(), diverging

    for module in (integrators, imh):
        monkeypatch.setattr(module, "acceptance", rooted)
    z, _ = transit(*KERNELS[name], skewed, exact_draws())
    assert p_value(z) < FAIL


@pytest.mark.parametrize("name", ["HMC", "ChEES", "MALA"])
def test_stale_gradient_is_seen(name, monkeypatch):
    # The GEBM authors' HMC keeps the gradient of a rejected proposal.
    def stale(mask, chosen, other):
        return select(mask, chosen, other)._replace(z_grad=chosen.z_grad)

    monkeypatch.setattr(hmc, "select", stale)
    z, _ = transit(*KERNELS[name], skewed, exact_draws())
    assert p_value(z) < FAIL


def test_square_rooted_tree_weights_are_seen(monkeypatch):
    honest = nuts.record_
    monkeypatch.setattr(nuts, "record_", lambda *args: 0.5 * honest(*args))
    z, _ = transit(*KERNELS["NUTS"], skewed, exact_draws(), transitions=8)
    assert p_value(z) < FAIL


def test_unchecked_subtrees_are_seen(monkeypatch):
    # A tree that may pass through a U-turn inside would not be grown from every leaf of it.
    honest = nuts.add_leaf_
    monkeypatch.setattr(nuts, "add_leaf_", lambda *args: torch.zeros_like(honest(*args)))
    z, _ = transit(*KERNELS["NUTS"], skewed, exact_draws(), transitions=8)
    assert p_value(z) < FAIL


BOX_CASES = {
    "HMC": (HMC(), 1.6),
    "ChEES": (ChEES(), 1.6),
    "MALA": (MALA(), 2.0),
    "NUTS": (NUTS(max_tree_depth=3), 1.6),
    "IMH": (IMH(), 1.0),
}


@pytest.mark.parametrize("name", BOX_CASES)
def test_bounded_prior_is_invariant(name):
    kernel, step_size = BOX_CASES[name]
    box, exact, p_value = boxed()
    assert p_value(exact) > PASS
    u, accept = transit(kernel.bind(box.reference), step_size, box.potential_fn, exact)
    assert 0.5 < accept < 0.95
    assert p_value(u) > PASS


def test_missing_jacobian_is_seen(monkeypatch):
    box, exact, p_value = boxed()
    monkeypatch.setattr(
        torch.distributions.transforms.ComposeTransform,
        "log_abs_det_jacobian",
        lambda self, u, z: torch.zeros_like(u),
    )
    u, _ = transit(MALA(), 2.0, box.potential_fn, exact)
    assert p_value(u) < FAIL


@pytest.mark.parametrize("step_size", [0.5, 1.0, 1.6])
def test_unadjusted_langevin_has_its_known_bias(step_size):
    # z' = (1 - ε²/2) z + ε ξ is stationary at variance 1/(1 - ε²/4); 20 steps forget the start
    # to within (1 - ε²/2)^40 = 0.005 of it at ε = 0.5.
    z, _ = transit(Langevin(), step_size, normal, torch.randn(CHAINS, 2, generator=rng()).double())
    variance = 1 / (1 - step_size**2 / 4)
    # 2 x 20,000 draws: relative standard error √(2/40,000).
    assert abs(z.var() / variance - 1) < 4 * (2 / z.numel()) ** 0.5
    scaled = (z / variance**0.5).numpy()
    assert 2 * min(stats.kstest(x, stats.norm.cdf).pvalue for x in scaled.T) > PASS


UNADJUSTED = [Langevin(), Kinetic(), Kinetic(scheme="ABOBA")]


@pytest.mark.parametrize("kernel", UNADJUSTED, ids=["Langevin", "BAOAB", "ABOBA"])
def test_unadjusted_kernels_are_not_invariant(kernel):
    z, _ = transit(kernel, 1.1, skewed, exact_draws())
    assert p_value(z) < FAIL


# On N(0, I) both schemes are exact in the position: at O the momentum has variance 1, and what
# the steps from one O to the next conserve gives z variance 1 - ε²/4 there (BAOAB, where it is
# z² + (1 - ε²/4) p²) or 1/(1 - ε²/4) (ABOBA, where it is p² + (1 - ε²/4) z²); the half step to
# the end makes 1 of either, and of the variance of p the following.
MOMENTUM_VARIANCE = {"BAOAB": lambda h: 1 - h**2 / 4, "ABOBA": lambda h: 1 / (1 - h**2 / 4)}


@pytest.mark.parametrize("friction", [0.3, 2.0])
@pytest.mark.parametrize("scheme", MOMENTUM_VARIANCE)
def test_kinetic_langevin_is_exact_on_a_normal(scheme, friction):
    step_size = 1.2
    start = torch.randn(CHAINS, 2, generator=rng(3), dtype=torch.float64)
    # Half of friction times time in the exponent: forgotten to e^(-0.15 * 1.2 * 60) = 2e-5.
    kernel, tuning = Kinetic(scheme=scheme, friction=friction), make_tuning(start, step_size)
    history = run_chain(kernel, normal, start, tuning, 60)
    z, momentum = history[-1][0].z, history[-1][0].momentum
    assert 2 * min(stats.kstest(x, stats.norm.cdf).pvalue for x in z.T.numpy()) > PASS
    error = 4 * (2 / z.numel()) ** 0.5
    assert abs(z.var() - 1) < error
    assert abs(momentum.var() / MOMENTUM_VARIANCE[scheme](step_size) - 1) < error
    # ... where the missing half step would be seen.
    assert abs(MOMENTUM_VARIANCE[scheme](step_size) - 1) > 10 * error


def test_flat_kinetic_langevin_is_an_ornstein_uhlenbeck_process():
    # The momentum keeps e^(-κε) of itself in a step, and is N(0, 1) always.
    start = torch.zeros(CHAINS, 1, dtype=torch.float64)
    tuning = make_tuning(start, 0.5)
    for scheme in MOMENTUM_VARIANCE:
        kernel = Kinetic(scheme=scheme, friction=0.7)
        states = [s for s, _ in run_chain(kernel, lambda z: 0 * z[:, 0], start, tuning, 2)]
        pair = torch.cat([state.momentum for state in states], 1)
        keep = torch.tensor(-0.35).exp()
        assert (pair.var(0) - 1).abs().max() < 4 * (2 / CHAINS) ** 0.5
        assert abs(torch.corrcoef(pair.T)[0, 1] - keep) < 4 * (1 - keep**2) / CHAINS**0.5
        travelled = states[1].z - states[0].z
        torch.testing.assert_close(travelled, 0.25 * pair.sum(1, keepdim=True))
