"""GEBMs as priors in Pyro models, and the tools for inverse problems, against closed forms."""

import math
import warnings
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import (
    draws_of,
    linear_gaussian,
    linear_gaussian_posterior,
    quiet_sample,
    rng,
    same,
    small_gebm,
    snapshot,
    standard_scores,
)
from pyro import poutine
from pyro.infer import MCMC, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_gebm as pg
from pyro_gebm import inference_data
from pyro_gebm.inverse import (
    log_evidence,
    posterior_images,
    posterior_x,
    sample_many,
)
from pyro_gebm.inverse.problems import many_problems
from pyro_gebm.mcmc import HMC, NUTS, GlobalMoves
from pyro_gebm.operators import Mask, RandomProjection, gaussian_noise, observe

LEFT, RIGHT = linear_gaussian(), small_gebm().double()
SEEN = Mask(torch.tensor([True, False, True]))
SCALE = 0.4
Y = torch.tensor([0.8, -0.3], dtype=torch.float64)


def inpaint(y, scale=SCALE):
    x = LEFT.model()
    observe("y", gaussian_noise(SEEN(x), scale, event_dim=1), y)


def exact_posterior(y, operator=SEEN, scale=SCALE):
    """Mean (2,) and covariance (2, 2) of z given y = A x + noise under ``linear_gaussian``."""
    mean, covariance = map(torch.as_tensor, linear_gaussian_posterior(LEFT))
    W, b = LEFT.base.generator.weight.detach(), LEFT.base.generator.bias.detach()
    A = operator(torch.eye(3, dtype=torch.float64)).T
    H = A @ W
    precision = torch.linalg.inv(covariance) + H.T @ H / scale**2
    found = torch.linalg.inv(precision)
    residual = y - A @ b
    return found @ (torch.linalg.solve(covariance, mean) + H.T @ residual / scale**2), found


def exact_evidence(y, operator=SEEN, scale=SCALE):
    mean, covariance = map(torch.as_tensor, linear_gaussian_posterior(LEFT))
    W, b = LEFT.base.generator.weight.detach(), LEFT.base.generator.bias.detach()
    A = operator(torch.eye(3, dtype=torch.float64)).T
    H = A @ W
    spread = H @ covariance @ H.T + scale**2 * torch.eye(len(A), dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(H @ mean + A @ b, spread)
    return float(law.log_prob(y))


# --- several GEBMs in one Pyro model ------------------------------------------


def pair(y):
    left = LEFT.model(name="left", beta=0.7)
    right = RIGHT.model(name="right")
    observe("y", gaussian_noise(left + right, SCALE, event_dim=1), y)


Y3 = torch.tensor([0.5, 0.1, -0.4], dtype=torch.float64)


def test_several_gebms_have_sites_of_their_own():
    trace = poutine.trace(pair).get_trace(Y3)
    assert [n for n in trace.nodes if n[0] != "_"] == [
        *("left", "left.neg_energy", "left.x"),
        *("right", "right.neg_energy", "right.x"),
        "y",
    ]
    left, right = trace.nodes["left"]["value"], trace.nodes["right"]["value"]
    x = LEFT.base(left) + RIGHT.base(right)
    likelihood = dist.Normal(x, SCALE).log_prob(Y3).sum()
    expected = likelihood - LEFT.potential_fn(left, 0.7) - RIGHT.potential_fn(right)
    torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=1e-10, atol=1e-10)


def test_the_default_name_keeps_its_sites():
    names = set(poutine.trace(LEFT.model).get_trace(name="z").nodes) - {"_INPUT", "_RETURN"}
    assert names == {"z", "neg_energy", "x"}


def test_the_same_name_twice_is_refused_by_name():
    def twice():
        LEFT.model()
        RIGHT.model()

    with pytest.raises(RuntimeError, match=r"site.*'z'"):
        poutine.trace(twice).get_trace()
    with pytest.raises(ValueError, match=r"at or after site 'z'.*Multiple"):
        quiet_sample(twice, num_chains=4, num_samples=5)


@pytest.mark.parametrize("lead", [(4,), (3, 1), (3, 4)])
def test_plates_have_a_latent_for_every_member(lead):
    def model():
        plates = [pyro.plate(f"p{i}", n, dim=i - len(lead)) for i, n in enumerate(lead) if n > 1]
        if len(plates) == 1:
            with plates[0]:
                return LEFT.model(name="u")
        with plates[0], plates[1]:
            return LEFT.model(name="u")

    trace = poutine.trace(model).get_trace()
    u = trace.nodes["u"]["value"]
    assert u.shape == (*lead, 2) and trace.nodes["u.x"]["value"].shape == (*lead, 3)
    assert trace.nodes["u.x"]["fn"].event_dim == 1  # of the datum, not of the plates
    trace.compute_log_prob()
    assert trace.nodes["u.neg_energy"]["log_prob"].shape == lead
    torch.testing.assert_close(
        trace.log_prob_sum(), -LEFT.potential_fn(u).sum(), rtol=1e-10, atol=1e-10
    )
    assert len(u.reshape(-1, 2).unique(dim=0)) == math.prod(lead)


def test_condition_do_and_block():
    u = torch.tensor([0.3, -0.2], dtype=torch.float64)
    conditioned = poutine.trace(poutine.condition(pair, data={"left": u})).get_trace(Y3)
    assert conditioned.nodes["left"]["is_observed"]
    torch.testing.assert_close(conditioned.nodes["left.x"]["value"], LEFT.base(u).detach())
    done = poutine.trace(poutine.do(pair, data={"left": u})).get_trace(Y3)
    torch.testing.assert_close(done.nodes["left.x"]["value"], LEFT.base(u).detach())
    # What is done is no evidence: the prior's density at u does not count, the energy does.
    right = done.nodes["right"]["value"]
    x = LEFT.base(u) + RIGHT.base(right)
    expected = dist.Normal(x, SCALE).log_prob(Y3).sum() - RIGHT.potential_fn(right)
    drawn = done.nodes["left"]  # the draw that was replaced
    prior = drawn["fn"].log_prob(drawn["value"])
    torch.testing.assert_close(
        done.log_prob_sum() - prior, expected - 0.7 * LEFT.latent_energy(u), rtol=1e-9, atol=1e-9
    )
    hidden = poutine.trace(poutine.block(pair, hide=["left", "left.x"])).get_trace(Y3)
    assert "left" not in hidden.nodes and "left.neg_energy" in hidden.nodes


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3).double(), r"site 'left': expected shape \(..., 2\); got \(3,\)"),
        (torch.zeros(()).double(), r"site 'left': expected shape \(..., 2\); got \(\)"),
        (torch.zeros(2), r"site 'left': expected torch.float64 .*got torch.float32"),
        ([0.0, 0.0], "site 'left': expected a tensor; got list"),
    ],
)
def test_what_is_no_latent_is_refused_by_name(value, message):
    with pytest.raises(ValueError, match=message):
        poutine.condition(pair, data={"left": value})(Y3)


@pytest.mark.parametrize("name", ["", 3, None])
def test_names_are_names(name):
    with pytest.raises(ValueError, match="name: expected the name of a site"):
        LEFT.model(name=name)


def test_predictive_of_several():
    u = torch.randn(7, 2, generator=rng(), dtype=torch.float64)
    sites = ("left.x", "right.x", "right")
    made = Predictive(pair, {"left": u}, return_sites=sites)(Y3)
    torch.testing.assert_close(made["left.x"].reshape(7, 3), LEFT.base(u).detach())
    right = made["right"].reshape(7, 2)
    torch.testing.assert_close(made["right.x"].reshape(7, 3), RIGHT.base(right).detach())


def test_a_guide_fits_and_starts_the_chains():
    # AutoNormal's optimum for a Gaussian: its mean, and scales 1/√precision_ii.
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float64)  # of the guide's parameters
    try:
        guide = AutoNormal(inpaint)
        steps = SVI(
            inpaint,
            guide,
            pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99}),
            Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=0),
        )
        for _ in range(350):
            steps.step(Y)
        start = Predictive(guide, num_samples=16)(Y)["z"].reshape(16, 2).detach()
    finally:
        torch.set_default_dtype(torch.float32)
    mean, covariance = exact_posterior(Y)
    loc, scale = guide.locs.z.detach(), guide.scales.z.detach()
    torch.testing.assert_close(loc, mean, atol=0.05, rtol=0)
    wanted = torch.linalg.inv(covariance).diagonal().rsqrt()
    torch.testing.assert_close(scale, wanted, atol=0.05, rtol=0.1)
    idata = quiet_sample(
        partial(inpaint, Y),
        num_chains=16,
        initial_params={"z": start},
        warmup_steps=0,
        kernel=HMC(trajectory_length=1e-6, step_size=1e-6, adapt_step_size=False),
        num_samples=1,
        global_moves=None,
    )
    np.testing.assert_allclose(draws_of(idata)[:, 0], start, atol=1e-3)
    pyro.clear_param_store()


# --- posteriors ------------------------------------------


def test_pyros_mcmc_has_the_exact_posterior():
    mean, covariance = exact_posterior(Y)
    mcmc = MCMC(pyro.infer.NUTS(inpaint), 200, 60, disable_progbar=True)
    mcmc.run(Y)
    z = mcmc.get_samples()["z"]
    # At least 50 of 200 NUTS draws on a Gaussian count as independent.
    assert ((z.mean(0) - mean).abs() < 4 * (covariance.diagonal() / 50).sqrt()).all()


@pytest.mark.parametrize(
    "settings",
    [{}, {"kernel": "NUTS", "global_moves": None}, {"tempering": (0.0, 0.3, 1.0)}],
    ids=str,
)
def test_sample_has_the_exact_posterior(settings):
    mean, covariance = exact_posterior(Y)
    idata = quiet_sample(partial(inpaint, Y), num_samples=60, warmup_steps=60, **settings)
    z = draws_of(idata)
    assert (abs(standard_scores(z, mean.numpy())) < 4.5).all()
    second = (z - mean.numpy())[..., :, None] * (z - mean.numpy())[..., None, :]
    assert (abs(standard_scores(second, covariance.numpy())) < 4.5).all()


def test_noise_scale_is_inferred_in_the_same_batch():
    # Against quadrature over z and log σ, on a grid.
    def unknown(y):
        scale = pyro.sample("scale", dist.LogNormal(torch.tensor(-1.0).double(), 0.5))
        inpaint(y, scale)

    idata = quiet_sample(partial(unknown, Y), num_samples=100, num_chains=16, warmup_steps=100)
    log_scale = np.log(draws_of(idata, "scale"))
    grid = torch.linspace(-4, 2, 601, dtype=torch.float64)
    weights = torch.tensor([exact_evidence(Y, scale=float(s)) for s in grid.exp()])
    weights = (weights - 0.5 * ((grid + 1) / 0.5) ** 2).softmax(0)
    truth = float(weights @ grid)
    assert abs(standard_scores(log_scale, truth)) < 4.5
    spread = float(weights @ (grid - truth) ** 2)
    assert abs(standard_scores((log_scale - truth) ** 2, spread)) < 4.5


def test_impossible_likelihoods_are_one_line():
    def impossible(y):
        x = LEFT.model()
        pyro.factor("never", x.sum() * 0 - torch.inf)

    with pytest.raises(ValueError, match=r"no start of finite potential .* check the energy") as e:
        quiet_sample(partial(impossible, Y), num_chains=4)
    assert "\n" not in str(e.value)


# --- many problems ------------------------------------------

MANY = torch.randn(20, 2, generator=rng(5), dtype=torch.float64)


def many(*observations, model=inpaint, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return sample_many(model, *observations, **{"progress": False, "seed": 0, **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kernel": "NUTS", "num_samples": 30, "warmup_steps": 50},
        {"kernel": "MALA", "thinning": 4},
        {"global_moves": GlobalMoves(num_proposals=4, every=2)},
    ],
    ids=str,
)
def test_every_problem_has_its_exact_posterior(settings):
    before = snapshot(LEFT)
    idata = many(MANY, **{"num_chains": 8, "num_samples": 60, "warmup_steps": 80, **settings})
    z = idata["posterior"]["z"]
    assert z.dims == ("chain", "draw", "problem", "z_dim_0") and z.shape[2:] == (20, 2)
    exact = [exact_posterior(y) for y in MANY]
    mean = torch.stack([m for m, _ in exact]).numpy()
    variance = torch.stack([c.diagonal() for _, c in exact]).numpy()
    # Of eight chains the error is itself uncertain: Student's t with 7 degrees of freedom; 40
    # scores beyond 10 have probability 40 * 2e-5, and their squares a mean of 7/5.
    for values, truth in ((z.values, mean), ((z.values - mean) ** 2, variance)):
        scores = standard_scores(values, truth)
        assert abs(scores).max() < 10
        assert (scores**2).mean() < 3
    assert same(before, snapshot(LEFT))
    assert idata.attrs["rhat_by_problem"].shape == (20,)


def test_problems_do_not_see_each_other():
    # A problem beside others, and the same one beside an outlier.
    alone = many(MANY[:2], num_chains=4, num_samples=50, warmup_steps=100)
    beside = many(
        torch.stack([MANY[0], 50 + MANY[1]]), num_chains=4, num_samples=200, warmup_steps=100
    )
    mean, covariance = exact_posterior(MANY[0])
    for idata in (alone, beside):
        z = draws_of(idata)[:, :, 0]
        error = covariance.diagonal().numpy() / (4 * z.shape[1] / 4)
        assert (abs(z.mean((0, 1)) - mean.numpy()) < 5 * np.sqrt(error)).all()
    far, _ = exact_posterior(50 + MANY[1])
    z = draws_of(beside)[:, :, 1]
    assert (abs(z.mean((0, 1)) - far.numpy()) < 5 * np.sqrt(error)).all()


def test_steps_and_masses_are_tuned_by_problem():
    def scaled(width):
        pyro.sample("u", dist.Normal(torch.zeros(3).double(), width).to_event(1))

    widths = torch.tensor([0.01, 1.0, 100.0], dtype=torch.float64)
    idata = many(widths, model=scaled, num_chains=8, num_samples=200, warmup_steps=150)
    deviation = draws_of(idata, "u").std((0, 1))
    np.testing.assert_allclose(deviation / widths.numpy()[:, None], 1.0, atol=0.15)
    acceptance = np.asarray(idata["sample_stats"]["acceptance_rate"]).mean((0, 1))
    assert (acceptance > 0.6).all()


def test_several_observations_and_their_own_masks():
    # Masks that differ by problem: weights of zero, since shapes are the same in all problems.
    masks = torch.rand(20, 3, generator=rng(6), dtype=torch.float64) < 0.7
    y = torch.randn(20, 3, generator=rng(7), dtype=torch.float64)

    def masked(y, mask):
        x = LEFT.model()
        pyro.sample("y", dist.Normal(x, SCALE).mask(mask).to_event(1), obs=y)

    target = many_problems(masked, (y, masks))
    u = torch.randn(40, 2, generator=rng(8), dtype=torch.float64)
    found = target.potential_fn(u)
    for row in range(40):
        p = row // 2
        x = LEFT.base(u[row]).detach()
        likelihood = (dist.Normal(x, SCALE).log_prob(y[p]) * masks[p]).sum()
        torch.testing.assert_close(found[row], LEFT.potential_fn(u[row]) - likelihood)
    chunked = many_problems(masked, (y, masks), chunk_size=7).potential_fn(u)
    torch.testing.assert_close(chunked, found, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="u: expected rows of all 20 problems"):
        target.potential_fn(u[:39])


def test_starts_seeds_and_x():
    starts = torch.randn(20, 4, 2, generator=rng(9), dtype=torch.float64)
    still = HMC(trajectory_length=1e-6, step_size=1e-6, adapt_step_size=False)
    settings = {"kernel": still, "warmup_steps": 0, "num_samples": 2, "include_x": True}
    idata = many(MANY, initial_params={"z": starts}, **settings)
    z, x = (torch.as_tensor(draws_of(idata, name)) for name in ("z", "x"))
    torch.testing.assert_close(z[:, 0].transpose(0, 1), starts, atol=1e-3, rtol=0)
    torch.testing.assert_close(x, LEFT.base(z).detach())
    state = torch.get_rng_state()
    one, other = (many(MANY[:3], num_samples=5, warmup_steps=5) for _ in range(2))
    np.testing.assert_array_equal(draws_of(one), draws_of(other))
    assert torch.equal(torch.get_rng_state(), state)
    assert not np.array_equal(
        draws_of(many(MANY[:3], num_samples=5, warmup_steps=5, seed=1)), draws_of(one)
    )


def test_a_file_keeps_the_problems(tmp_path):
    idata = many(MANY[:3], num_samples=10, warmup_steps=10)
    inference_data.save(idata, tmp_path / "many.nc")
    loaded = inference_data.load(tmp_path / "many.nc")
    assert loaded["posterior"]["z"].dims == ("chain", "draw", "problem", "z_dim_0")
    np.testing.assert_array_equal(draws_of(loaded), draws_of(idata))
    assert inference_data.rhat(idata).shape == (3, 2)


def bounded(y):
    x = LEFT.model()
    # Only x_0 below y_0 is possible.
    pyro.factor("wall", torch.where(x[0] < y[0], 0.0, -torch.inf))


def test_an_impossible_problem_is_named():
    y = torch.tensor([[9.0], [-1e9], [9.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"for 1 of 3 problems \(1\): their observations"):
        many(y, model=bounded)


@pytest.mark.parametrize(
    ("observations", "settings", "message"),
    [
        ((), {}, "observations: expected one or more tensors .*got none"),
        (([1.0],), {}, "observations: expected one or more tensors .*got list"),
        ((MANY, MANY[:3]), {}, r"observations: expected as many rows of each.*got \[20, 3\]"),
        ((torch.zeros(()),), {}, "observations: expected as many rows"),
        ((MANY,), {"kernel": "ChEES"}, "kernel: expected one of hmc, nuts, mala; got 'chees'"),
        ((MANY,), {"kernel": pg.ChEES()}, "kernel: expected HMC, NUTS or MALA.*got ChEES"),
        ((MANY,), {"global_moves": "auto"}, "global_moves: expected None or GlobalMoves"),
        ((MANY,), {"kernel": NUTS(), "global_moves": GlobalMoves()}, "expected None with NUTS"),
        ((MANY,), {"num_chains": 0}, "num_chains: expected a whole number >= 1"),
        (
            (MANY,),
            {"initial_params": {"z": torch.zeros(20, 2)}},
            r"site 'z': expected shape \(problems, chains, ...\) = \(20, 4, ...\)",
        ),
        (
            (MANY[:, :1],),
            {},
            r"failed at or after site 'x': ValueError: site 'y': expected an observation",
        ),
    ],
)
def test_refusals(observations, settings, message):
    with pytest.raises(ValueError, match=message):
        many(*observations, **settings)


def test_problems_that_do_not_converge_are_counted():
    def two_modes(y):  # wells at ± y, 0.3 wide
        u = pyro.sample("u", dist.Normal(torch.zeros(()), 5.0))
        wells = [-0.5 * ((u - side * y[0]) / 0.3) ** 2 for side in (-1, 1)]
        pyro.factor("wells", torch.logaddexp(*wells))

    y = torch.tensor([[0.1], [6.0]])
    with pytest.warns(UserWarning, match=r"1 of 2 problems .*\(problem 1 the worst"):
        sample_many(
            two_modes, y, num_chains=8, num_samples=80, warmup_steps=60, seed=0, progress=False
        )
    quiet = GlobalMoves(num_proposals=64, every=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample_many(
            two_modes,
            y[1:],
            num_chains=8,
            seed=0,
            progress=False,
            num_samples=80,
            warmup_steps=60,
            global_moves=quiet,
        )


# --- summaries and evidence ------------------------------------------


def test_posterior_images_are_those_of_the_exact_posterior():
    idata = quiet_sample(partial(inpaint, Y), num_samples=200)
    mean, covariance = exact_posterior(Y)
    W, b = LEFT.base.generator.weight.detach(), LEFT.base.generator.bias.detach()
    images = posterior_images(idata, LEFT, num_draws=10**6)
    deviation = (W @ covariance @ W.T).diagonal().sqrt()
    centre = W @ mean + b
    # 12,800 draws of ChEES, of which a tenth or more count as independent.
    error = deviation / math.sqrt(1280)
    assert ((images.mean - centre).abs() < 4.5 * error).all()
    torch.testing.assert_close(images.deviation, deviation, rtol=0.1, atol=0)
    for quantile, number in zip(images.quantiles, (-1.6449, 0.0, 1.6449), strict=True):
        assert ((quantile - centre - number * deviation).abs() < 10 * error).all()
    assert posterior_x(idata, LEFT, 12).shape == (12, 3)
    few = posterior_images(idata, LEFT, num_draws=100, quantiles=(0.0, 1.0))
    x = posterior_x(idata, LEFT, 100).double()
    torch.testing.assert_close(few.quantiles, torch.stack([x.amin(0), x.amax(0)]))


def test_posterior_images_of_many_problems_and_names():
    idata = many(MANY[:4], num_samples=20, warmup_steps=20)
    images = posterior_images(idata, LEFT)
    assert images.mean.shape == (4, 3) and images.quantiles.shape == (3, 4, 3)
    one = LEFT.base(torch.as_tensor(draws_of(idata)[:, :, 2])).reshape(-1, 3)
    torch.testing.assert_close(images.mean[2], one.mean(0).detach())
    for call, message in (
        (
            lambda: posterior_images(idata, LEFT, name="u"),
            r"name: expected one of \['z'\]; got 'u'",
        ),
        (lambda: posterior_images(idata, LEFT, quantiles=(2.0,)), "quantiles: expected a number"),
        (
            lambda: posterior_x(
                idata, pg.GEBM(pg.Base(nn.Identity(), pg.StandardNormal(3)), RIGHT)
            ),
            "gebm: expected the one whose latent 'z' has 2 dimensions; got one of 3",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


OPERATORS = {
    "mask": SEEN,
    "all": nn.Identity(),
    "projection": RandomProjection((3,), 2, generator=rng(2)),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("scale", [0.4, 0.05])
def test_evidence_is_exact_for_linear_gaussians(name, scale):
    operator = OPERATORS[name]
    y = torch.tensor([1.5, -1.0, 0.4], dtype=torch.float64)[: 3 if name == "all" else 2]
    before = snapshot(LEFT)

    def log_likelihood(x):
        return gaussian_noise(operator(x), scale, event_dim=1).log_prob(y)

    found = log_evidence(LEFT, log_likelihood, generator=rng(3))
    truth = exact_evidence(y, operator, scale)
    assert abs(found.log_evidence - truth) < 4.5 * found.standard_error
    assert found.standard_error < 0.2
    again = log_evidence(LEFT, log_likelihood, partition=found.partition, generator=rng(4))
    assert again.partition is found.partition
    assert abs(again.log_evidence - truth) < 4.5 * again.standard_error
    assert same(before, snapshot(LEFT)) and all(p.requires_grad for p in LEFT.parameters())


def test_evidence_refuses():
    def bad(value):
        return lambda: log_evidence(LEFT, value, num_chains=64, generator=rng())

    with pytest.raises(ValueError, match=r"log_likelihood: expected shape \(64,\).*got \(64, 3\)"):
        bad(lambda x: x)()
    with pytest.raises(ValueError, match="energy_fn"):
        bad(lambda x: x[:, 0] * 0 - torch.inf)()
    with pytest.raises(ValueError, match="energy_fn"):
        bad(lambda x: x[:, 0] * torch.nan)()
