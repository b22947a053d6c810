"""Bases with a density: flows against their Jacobians and quadrature, and what stands on them."""

import copy
import math
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import Quadratic, draws_of, quiet_sample, rng, same, standard_scores
from pyro.distributions import transforms as pyro_transforms
from scipy import stats
from torch import nn

import pyro_gebm as pg
from pyro_gebm.flows import (
    NSF,
    NVP,
    Flow,
    FreeEnergy,
    PyroFlow,
    ZukoFlow,
    flow_base,
    log_prob,
)
from pyro_gebm.flows.bijections import RationalQuadratic
from pyro_gebm.nets import MLPEnergy, NetworkSpec, build

torch.set_num_threads(1)


def zuko_flow(name, **options):
    zuko = pytest.importorskip("zuko")
    return ZukoFlow(getattr(zuko.flows, name)(**options))


def pyro_coupling():
    parts = [
        pyro_transforms.affine_coupling(3, [8]),
        pyro_transforms.Permute(torch.tensor([2, 0, 1])),
        pyro_transforms.spline_coupling(3, 1, [8]),
        torch.distributions.AffineTransform(0.5, 2.0),
    ]
    return PyroFlow(parts, 3)


FLOWS = {
    "nvp": lambda: NVP(3, transforms=3, hidden=(8,)),
    "nvp of one dimension": lambda: NVP(1, transforms=2, hidden=(8,)),
    "nsf": lambda: NSF(3, transforms=3, hidden=(8,), bins=5, bound=2.0),
    "nsf of one dimension": lambda: NSF(1, transforms=2, hidden=(8,)),
    "zuko, autoregressive": lambda: zuko_flow("MAF", features=3, transforms=2, hidden_features=[8]),
    "zuko, coupling": lambda: zuko_flow("NSF", features=3, passes=2, hidden_features=[8]),
    "pyro": pyro_coupling,
}


def shaken(module, scale=0.3, seed=0):
    """Float64, with all parameters drawn anew: a fresh flow is the identity, and tests nothing."""
    generator = rng(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module.double().eval()


@pytest.fixture(params=FLOWS)
def flow(request):
    torch.manual_seed(0)
    return shaken(FLOWS[request.param]())


def grid(dim, half=12.0, num=601):
    """Points (N, dim) of a square lattice and the log of a cell's volume."""
    line = torch.linspace(-half, half, num, dtype=torch.float64)
    points = torch.cartesian_prod(*[line] * dim).reshape(-1, dim)
    return points, dim * math.log(float(line[1] - line[0]))


def integral(log_values, log_cell):
    """log ∫ by the trapezoidal rule, which is very good where all ends at zero."""
    return float(torch.logsumexp(log_values, 0)) + log_cell


# --- flows ------------------------------------------


def test_inverse_and_its_log_det(flow):
    z = 1.5 * torch.randn(7, flow.dim, dtype=torch.float64, generator=rng(1))
    x = flow(z)
    assert (x - z).abs().max() > 0.1
    back, log_det = flow.inverse(x)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-9)
    for i in range(len(z)):
        jacobian = torch.autograd.functional.jacobian(lambda row: flow(row[None])[0], z[i])
        torch.testing.assert_close(log_det[i], -torch.linalg.slogdet(jacobian)[1])


def test_rows_do_not_interact_and_shapes_are_checked(flow):
    z = torch.randn(4, flow.dim, dtype=torch.float64, generator=rng(1))
    torch.testing.assert_close(flow(z)[1:2], flow(z[1:2]), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="z: expected shape"):
        flow(torch.zeros(2, flow.dim + 1, dtype=torch.float64))
    with pytest.raises(ValueError, match="x: expected shape"):
        flow.inverse(torch.zeros(2, flow.dim + 1, dtype=torch.float64))


def test_every_parameter_gets_a_gradient(flow):
    if flow.dim == 1:
        pytest.skip("in one dimension the networks have no inputs")
    x = torch.randn(64, flow.dim, dtype=torch.float64, generator=rng(1))
    flow.inverse(x).log_det.sum().backward()
    first = {name for name, p in flow.named_parameters() if p.grad is not None and p.grad.any()}
    flow.zero_grad()
    flow.inverse(x).z.square().sum().backward()
    second = {name for name, p in flow.named_parameters() if p.grad is not None and p.grad.any()}
    assert first | second == {name for name, _ in flow.named_parameters()}


@pytest.mark.parametrize("name", ["nvp", "nsf", "nsf of one dimension"])
def test_gradients_against_finite_differences(name):
    flow = shaken(FLOWS[name]())
    base = flow_base(flow)
    x = 1.2 * torch.randn(5, flow.dim, dtype=torch.float64, generator=rng(2))
    x.requires_grad_()
    # Both orders: penalties on an energy with log h in it differentiate twice.
    assert torch.autograd.gradcheck(lambda x: log_prob(base, x), (x,))
    assert torch.autograd.gradgradcheck(lambda x: log_prob(base, x), (x,))
    parameter = next(iter(flow.parameters()))

    def of_parameter(value):
        inner = {"generator." + next(iter(dict(flow.named_parameters()))): value}
        whole = _Density(base)
        return torch.func.functional_call(
            whole, {f"base.{key}": value for key, value in inner.items()}, (x.detach(),)
        )

    assert torch.autograd.gradcheck(of_parameter, (parameter,))


class _Density(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, x):
        return log_prob(self.base, x)


def test_a_fresh_one_is_nearly_the_identity():
    x = torch.randn(20, 3, dtype=torch.float64, generator=rng()) * 3
    for flow in (NVP(3).double(), NSF(3).double()):
        torch.testing.assert_close(flow(x), x, rtol=0, atol=0.3)
        log_det = flow.inverse(x).log_det
        torch.testing.assert_close(log_det, torch.zeros_like(log_det), rtol=0, atol=0.3)
        assert not torch.equal(flow(x), x)
        assert flow(x[:0]).shape == (0, 3) and flow.inverse(x[:0]).log_det.shape == (0,)


def test_spline_against_pyros():
    spline = pytest.importorskip("pyro.distributions.transforms.spline")
    bijection = RationalQuadratic(6, 3.0)
    raw = 2 * torch.randn(400, bijection.num_parameters, dtype=torch.float64, generator=rng())
    x = torch.linspace(-4, 4, 400, dtype=torch.float64)
    wide, high, inner = torch.split(raw, [6, 6, 5], dim=-1)
    slopes = nn.functional.softplus(inner + math.log(math.expm1(1 - 1e-3)))
    expected, log_slope = spline._monotonic_rational_spline(
        x, wide.softmax(-1), high.softmax(-1), slopes, bound=3.0
    )
    z, found = bijection.to_latent(x, raw)
    # Not in the outer bins, where Pyro's has a slope of 0.999 at the ends, and so a kink.
    knots = bijection._knots(wide)
    inner_bins = (x > knots[:, 1]) & (x < knots[:, -2])
    assert inner_bins.sum() > 100
    torch.testing.assert_close(z[inner_bins], expected[inner_bins], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[inner_bins], log_slope[inner_bins], rtol=1e-5, atol=1e-5)


def test_spline_at_and_beyond_its_ends():
    bijection = RationalQuadratic(4, 2.0)
    x = torch.tensor([-1e200, -2.0, -2 + 1e-9, 2 - 1e-9, 2.0, 1e200], dtype=torch.float64).repeat(
        50
    )
    # Far beyond the ends the formula overflows, and so do its gradients.
    raw = torch.randn(300, bijection.num_parameters, dtype=torch.float64, generator=rng())
    raw.requires_grad_()
    x.requires_grad_()
    z, log_slope = bijection.to_latent(x, raw)
    torch.testing.assert_close(z, x, rtol=0, atol=1e-7)
    torch.testing.assert_close(log_slope, torch.zeros_like(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(bijection.to_data(z, raw), x, rtol=0, atol=1e-7)
    for value in (z, log_slope, bijection.to_data(x, raw)):
        for gradient in torch.autograd.grad(value.sum(), (x, raw), retain_graph=True):
            assert torch.isfinite(gradient).all()


def test_built_by_name_and_the_order_travels_with_the_weights():
    for name, options in (("nvp", {}), ("nsf", {"bins": 4})):
        flow = build(NetworkSpec(name, {"dim": 5, "hidden": [6], "transforms": 3, **options}))
        assert isinstance(flow, Flow) and build(flow.spec).spec == flow.spec
        assert "layers.parts.0.order" in flow.state_dict()
    halves = [set(part.order[:2].tolist()) for part in flow.layers.parts]
    assert halves[0].isdisjoint(halves[1]), "what one layer keeps the next one moves"


@pytest.mark.parametrize(
    "make",
    [
        lambda: NVP(0),
        lambda: NVP(2, transforms=0),
        lambda: NVP(2, activation="relu"),
        lambda: NSF(2, bins=1),
        lambda: NSF(2, bins=1000),
        lambda: NSF(2, bound=0.0),
        lambda: NSF(2, hidden=(0,)),
    ],
)
def test_options_are_checked(make):
    with pytest.raises(ValueError, match="expected"):
        make()


# --- flows of others ------------------------------------------


@pytest.mark.parametrize("name", ["MAF", "NSF", "NICE"])
def test_a_zuko_flow_keeps_its_density_and_its_law(name):
    zuko = pytest.importorskip("zuko")
    flow = shaken(getattr(zuko.flows, name)(features=2, transforms=2, hidden_features=[8]))
    base = flow_base(flow)
    assert isinstance(base.latent_prior, pg.StandardNormal)
    x = torch.randn(9, 2, dtype=torch.float64, generator=rng())
    torch.testing.assert_close(log_prob(base, x), flow().log_prob(x))
    z = base.latent_prior.sample(5)
    torch.testing.assert_close(base(z), flow().transform.inv(z))


def test_a_zuko_flow_of_other_latents():
    zuko = pytest.importorskip("zuko")
    flow = zuko.flows.NCSF(features=2, transforms=1, hidden_features=[8])
    base = flow_base(flow)
    assert isinstance(base.latent_prior, pg.LatentPrior)
    x = torch.rand(9, 2, generator=rng()) - 0.5
    torch.testing.assert_close(log_prob(base, x), flow().log_prob(x), rtol=1e-4, atol=1e-5)


def test_a_transformed_distribution_keeps_its_density():
    parts = [
        pyro_transforms.affine_autoregressive(2, [8]),
        pyro_transforms.affine_coupling(2, hidden_dims=[8]),
    ]
    given = dist.TransformedDistribution(dist.Normal(torch.zeros(2), torch.ones(2)), parts)
    base = flow_base(given)
    assert isinstance(base.latent_prior, pg.StandardNormal)
    assert len(list(base.parameters())) > 6
    x = torch.randn(9, 2, generator=rng())
    torch.testing.assert_close(log_prob(base, x), given.log_prob(x), rtol=1e-4, atol=1e-5)


def test_pyros_caches_do_not_survive():
    base = flow_base(pyro_coupling())
    x = torch.randn(4, 3, generator=rng())
    before = log_prob(base, x)
    copy.deepcopy(base)  # tensors of a graph in a cache would refuse
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.1)
    after = log_prob(base, x)  # of the very same tensor, which a cache would know again
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, log_prob(base, x.clone()))


def test_what_is_no_flow_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"none.*planar|Planar"):
        PyroFlow([pyro_transforms.planar(2)], 2)
    with pytest.raises(ValueError, match="expected torch or Pyro transforms"):
        PyroFlow([], 2)
    with pytest.raises(ValueError, match="base: expected one with a density"):
        log_prob(pg.Base(nn.Linear(2, 2), pg.StandardNormal(2)), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="base: expected one with a density"):
        FreeEnergy(nn.Linear(2, 1), pg.Base(nn.Linear(2, 2), pg.StandardNormal(2)))
    monkeypatch.setitem(sys.modules, "zuko.lazy", None)
    with pytest.raises(ImportError, match="pip install zuko"):
        flow_base(nn.Linear(2, 2))


def test_what_is_no_zuko_flow_is_refused():
    zuko = pytest.importorskip("zuko")
    with pytest.raises(ValueError, match="got Linear"):
        flow_base(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="without context"):
        flow_base(zuko.flows.NSF(2, context=3))
    with pytest.raises(ValueError, match=r"expected a zuko\.flows\.Flow"):
        ZukoFlow(zuko.flows.GMM(2))


# --- the base ------------------------------------------


def two_dimensional(name):
    flow = NVP(2, transforms=3, hidden=(8,)) if name == "nvp" else NSF(2, transforms=2, hidden=(8,))
    return flow_base(shaken(flow, 0.25))


@pytest.mark.parametrize("name", ["nvp", "nsf"])
def test_density_sums_to_one_and_is_that_of_the_samples_in_2d(name):
    base = two_dimensional(name)
    points, log_cell = grid(2, half=14.0)
    log_h = log_prob(base, points).detach()
    # The grid resolves it to about 1e-4, kinks of splines included.
    assert integral(log_h, log_cell) == pytest.approx(0.0, abs=2e-4)
    torch.manual_seed(0)
    x = base.sample(40_000)
    weights = torch.softmax(log_h, 0)
    for statistic in (lambda x: x, torch.square, lambda x: x[:, :1] * x[:, 1:], torch.sin):
        values = statistic(x)
        error = values.std(0) / math.sqrt(len(x))
        assert ((values.mean(0) - weights @ statistic(points)).abs() < 4.5 * error + 1e-3).all()


def test_density_and_law_in_1d():
    base = flow_base(shaken(NSF(1, transforms=2, hidden=(8,)), 0.5))
    points, log_cell = grid(1, half=60.0, num=480_001)
    log_h = log_prob(base, points).detach()
    assert integral(log_h, log_cell) == pytest.approx(0.0, abs=3e-5)
    torch.manual_seed(0)
    x = base.sample(5000)[:, 0].numpy()
    cdf = np.cumsum(np.exp(log_h.numpy() + log_cell))
    assert stats.kstest(x, lambda q: np.interp(q, points[:, 0].numpy(), cdf)).pvalue > 1e-4


# --- energies on it ------------------------------------------


def normal_energy(mean, std):
    """r of N(mean, std² I) without its constant."""
    mean = torch.tensor(mean, dtype=torch.float64)
    return Quadratic(mean, torch.full_like(mean, std**-2))


def test_the_sign_of_h_in_one_dimension():
    # h = N(0, 1), exp(-r) = N(1, 1/4): E = r - h, as the slides print it, gives N(2/3, 1/6).
    base = flow_base(NVP(1).double())
    gebm = pg.GEBM(base, FreeEnergy(normal_energy([1.0], 0.5), base))
    points, _ = grid(1)
    weights = torch.softmax(log_prob(base, points).detach() - gebm.energy(points), 0)
    mean = float(weights @ points[:, 0])
    assert mean == pytest.approx(1.0, abs=1e-6)
    assert float(weights @ points[:, 0] ** 2) - mean**2 == pytest.approx(0.25, abs=1e-6)


def test_free_energy_leaves_the_flow_out():
    base = two_dimensional("nvp")
    energy = FreeEnergy(MLPEnergy((2,), (4,)).double(), base)
    names = [name for name, _ in energy.named_parameters()]
    assert names and all(name.startswith("r.") for name in names)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True, generator=rng())
    energy(x).sum().backward()
    assert all(p.grad is None for p in base.parameters())
    assert x.grad is not None
    expected = torch.autograd.grad((energy.r(x) + log_prob(base, x)).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)
    # A copy has a copy of the base, and its energy knows that one.
    gebm = copy.deepcopy(pg.GEBM(base, energy))
    assert gebm.energy.base is gebm.base and gebm.base is not base
    with pytest.raises(ValueError, match="r: expected shape"):
        FreeEnergy(nn.Linear(2, 2).double(), base)(x)


@pytest.mark.parametrize("kind", ["residual", "free"])
def test_potential_model_and_vmap(kind):
    base = two_dimensional("nsf")
    r = nn.Sequential(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 1)).double()
    gebm = pg.GEBM(base, r if kind == "residual" else FreeEnergy(r, base))
    z = torch.randn(5, 2, dtype=torch.float64, generator=rng())
    potential = gebm.potential_fn(z)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda row: base(row[None])[0]))(z)
    volume = torch.linalg.slogdet(jacobians)[1]
    x, prior = base(z), base.latent_prior.log_prob(z)
    log_q = (prior - volume if kind == "residual" else 0.0) - r(x)[:, 0]  # in x
    torch.testing.assert_close(potential, -(log_q + volume))
    torch.testing.assert_close(torch.func.vmap(gebm.potential_fn)(z[:, None])[:, 0], potential)
    for row, value in zip(z, potential, strict=True):
        conditioned = pyro.poutine.condition(gebm.model, {"z": row})
        trace = pyro.poutine.trace(conditioned).get_trace()
        torch.testing.assert_close(trace.log_prob_sum(), -value)


@pytest.mark.parametrize("kind", ["residual", "free"])
def test_save_and_load(kind, tmp_path):
    for flow in (NVP(2, transforms=2, hidden=(8,)), NSF(2, transforms=2, hidden=(8,))):
        base = flow_base(shaken(flow))
        r = MLPEnergy((2,), (8,)).double()
        gebm = pg.GEBM(base, r if kind == "residual" else FreeEnergy(r, base))
        pg.save(gebm, tmp_path / "gebm.pt")
        again = pg.load(tmp_path / "gebm.pt")
        assert same(gebm.state_dict(), again.state_dict())
        z = torch.randn(4, 2, dtype=torch.float64, generator=rng())
        assert torch.equal(gebm.potential_fn(z), again.potential_fn(z))
        assert torch.equal(log_prob(base, z), log_prob(again.base, z))
        assert len(list(gebm.parameters())) == len(list(again.parameters()))


def test_load_takes_the_parts_that_only_the_user_can_build(tmp_path):
    base = flow_base(zuko_flow("NICE", features=2))
    gebm = pg.GEBM(base, FreeEnergy(nn.Linear(2, 1), base))
    pg.save(gebm, tmp_path / "gebm.pt")
    with pytest.raises(ValueError, match="generator: the saved one is a ZukoFlow"):
        pg.load(tmp_path / "gebm.pt")
    with pytest.raises(ValueError, match="energy: the saved one is a Linear"):
        pg.load(tmp_path / "gebm.pt", generator=zuko_flow("NICE", features=2))
    z = torch.randn(4, 2, generator=rng())
    for energy in (nn.Linear(2, 1), FreeEnergy(nn.Linear(2, 1), base)):
        flow = zuko_flow("NICE", features=2)
        again = pg.load(tmp_path / "gebm.pt", generator=flow, energy=energy)
        assert torch.equal(gebm.potential_fn(z), again.potential_fn(z))
        assert again.energy.base is again.base


@pytest.mark.parametrize("kind", ["residual", "free"])
def test_nuts_has_the_law_of_the_quadrature(kind):
    base = flow_base(shaken(NVP(2, transforms=2, hidden=(8,)), 0.2))
    bump = Quadratic(torch.tensor([0.5, -0.5]).double(), torch.tensor([1.0, 0.3]).double())
    gebm = pg.GEBM(base, bump if kind == "residual" else FreeEnergy(bump, base))
    points, _ = grid(2, half=14.0)
    log_q = -bump(points) + (log_prob(base, points).detach() if kind == "residual" else 0.0)
    weights = torch.softmax(log_q, 0)
    found = quiet_sample(
        gebm, kernel="NUTS", num_samples=120, num_chains=16, warmup_steps=100, global_moves=None
    )
    x = base(torch.as_tensor(draws_of(found))).detach()
    for statistic in (lambda x: x, torch.square, lambda x: x[..., :1] * x[..., 1:]):
        truth = (weights @ statistic(points)).numpy()
        assert (np.abs(standard_scores(statistic(x), truth)) < 4.5).all()


def test_generate_takes_it():
    gebm = pg.GEBM(two_dimensional("nsf"), nn.Linear(2, 1).double())
    x = pg.generate(gebm, 20, kernel="HMC", warmup_steps=50, seed=0, progress=False)
    assert x.shape == (20, 2)
