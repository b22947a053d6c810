"""What a Pyro model must be: each refusal names the site and says what to do."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import normal, small_gebm
from pyro import poutine
from torch import nn

from pyro_gebm.sampling.pyro_model import is_pyro_model, pyro_target

Y = torch.tensor([0.3, -1.2, 0.8])


def simple(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mean, 1.0).expand([3]).to_event(1), obs=y)


class Likelihood(nn.Module):
    def forward(self, y):
        simple(y)


class Silent(nn.Module):
    """A potential whose signature says nothing."""

    def forward(self, *args, **kwargs):
        return normal(*args)


@pytest.mark.parametrize(
    ("model", "args", "kwargs", "expected"),
    [
        (simple, (Y,), {}, True),
        (simple, (), {"y": Y}, True),
        (partial(simple, Y), (), {}, True),
        (poutine.condition(simple, data={"mean": torch.zeros(())}), (Y,), {}, True),
        (lambda: simple(Y), (), {}, True),
        (small_gebm().model, (), {}, True),
        (Likelihood(), (Y,), {}, True),
        (normal, (), {}, False),
        (lambda z, scale=2.0: scale * normal(z), (), {}, False),
        (nn.Linear(2, 1), (), {}, False),
        (Silent(), (), {}, False),
        (torch.sum, (), {}, False),  # no signature
        (small_gebm(), (), {}, False),
        ("a name", (), {}, False),
    ],
)
def test_what_is_a_pyro_model(model, args, kwargs, expected):
    assert is_pyro_model(model, args, kwargs) is expected


@pytest.mark.parametrize(
    ("model", "args", "kwargs", "message"),
    [
        (simple, (Y, Y), {}, r"simple\(y\) cannot be called .* too many positional"),
        (simple, (Y,), {"x": 1}, "unexpected keyword argument 'x'"),
        (normal, (), {"y": Y}, "missing a required argument: 'z'"),
        (Likelihood(), (), {"x": Y}, "Likelihood"),
        (small_gebm(), (Y,), {}, "a GEBM takes no further arguments"),
    ],
)
def test_arguments_that_do_not_fit(model, args, kwargs, message):
    with pytest.raises(ValueError, match=message):
        is_pyro_model(model, args, kwargs)


def discrete():
    pyro.sample("coin", dist.Bernoulli(0.5))


def counted():
    pyro.sample("count", dist.Poisson(3.0))


def observed_only():
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.zeros(()))


def subsampled():
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3, subsample_size=2) as index:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=Y[index])


def delta():
    pyro.sample("fixed", dist.Delta(torch.zeros(())))


def on_a_sphere():
    pyro.sample("direction", dist.ProjectedNormal(torch.ones(3)))


def not_a_distribution():
    pyro.sample("anything", lambda: torch.randn(()))


def moving_support():
    high = pyro.sample("high", dist.LogNormal(0.0, 1.0))
    pyro.sample("inside", dist.Uniform(torch.zeros(()), high))


class Growing:
    """A site more, or a longer one, in every run."""

    def __init__(self, longer):
        self.runs, self.longer = 0, longer

    def __call__(self):
        self.runs += 1
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([self.runs if self.longer else 1]))
        if not self.longer and self.runs > 1:
            pyro.sample("late", dist.Normal(0.0, 1.0))


def broken():
    pyro.sample("x", dist.Normal(0.0, 1.0))
    raise KeyError("no such thing")


def improper():
    pyro.sample("flat", dist.ImproperUniform(dist.constraints.real, (), ()))


def bad_data():
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    pyro.sample("y", dist.Poisson(rate), obs=torch.tensor(-1.0))


def same_name():
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (discrete, "'coin' is discrete and latent.*sum it out"),
        (counted, "'count' is discrete"),
        (observed_only, "expected a latent sample site"),
        (subsampled, "plate 'data' subsamples 2 of 3"),
        (delta, "'fixed' is latent and has a Delta.*pyro.deterministic"),
        (on_a_sphere, "'direction' has support"),
        (not_a_distribution, "'anything': expected a distribution; got function"),
        (moving_support, "support of site 'inside' depends on other sites"),
        (broken, "at or after site 'x': KeyError: 'no such thing'"),
        (improper, "at or after site 'flat': NotImplementedError"),
        (bad_data, "at or after site 'y': ValueError: "),
        (same_name, "at or after site 'x': RuntimeError: Multiple sample sites named 'x'"),
    ],
)
def test_models_that_cannot_be_sampled(model, message, batched):
    with pytest.raises(ValueError, match=message):
        pyro_target(model, (), {}, batched=batched)


def test_structure_that_changes_from_run_to_run():
    with pytest.raises(ValueError, match="site 'late' is in some runs and not in others"):
        pyro_target(Growing(longer=False), (), {})
    with pytest.raises(ValueError, match=r"site 'x' had shape \(1,\) in one run and \(2,\)"):
        pyro_target(Growing(longer=True), (), {})


def branching(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    centre = mean if mean > 0 else 2 * mean
    pyro.sample("y", dist.Normal(centre, 1.0).expand([3]).to_event(1), obs=y)


def reading_a_number(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mean.item(), 1.0).expand([3]).to_event(1), obs=y)


@pytest.mark.parametrize("model", [branching, reading_a_number])
def test_control_flow_on_values_is_named_and_runs_one_by_one(model):
    with pytest.raises(ValueError, match=r"'mean'.*kernel=pyro.infer.NUTS") as caught:
        pyro_target(model, (Y,), {})
    assert caught.value.__cause__ is not None and "\n" not in str(caught.value)
    target = pyro_target(model, (Y,), {}, batched=False)
    mean = torch.tensor([[-1.0], [1.0]])
    truth = 0.5 * mean[:, 0] ** 2 - dist.Normal(
        torch.where((mean < 0) & (model is branching), 2 * mean, mean), 1.0
    ).log_prob(Y).sum(-1)
    value = target.potential_fn(mean)
    torch.testing.assert_close(value.diff(), truth.diff(), rtol=1e-5, atol=1e-5)


def test_a_site_that_appears_in_the_chain_is_an_error():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if x > 100:
            pyro.sample("far", dist.Normal(0.0, 1.0))

    target = pyro_target(model, (), {}, batched=False)
    with pytest.raises(ValueError, match="site 'far' is in some runs"):
        target.potential_fn(torch.tensor([[0.0], [101.0]]))


@pytest.mark.parametrize("batched", [True, False])
def test_hidden_randomness_is_refused(batched):
    hidden = poutine.block(simple, hide=["mean"])

    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        hidden(Y)
        pyro.factor("noise", torch.randn(()))

    with pytest.raises(ValueError, match="draw no random numbers outside of sample sites"):
        pyro_target(model, (), {}, batched=batched)


def test_values_that_differ_in_a_batch_are_refused(monkeypatch):
    """Plant it: one chain's density leaks into the other's."""
    monkeypatch.setattr(torch.func, "vmap", lambda fn, **_: lambda u: fn(u[0]) + 0 * u.sum(-1))
    with pytest.raises(ValueError, match="in one batch and chain by chain"):
        pyro_target(simple, (Y,), {})


def test_batch_norm_in_train_mode_is_refused():
    norm = nn.BatchNorm1d(3)

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([4, 3]).to_event(2))
        pyro.factor("f", norm(x).sum())

    with pytest.raises(ValueError, match="cannot be evaluated in one batch"):
        pyro_target(model, (), {})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": torch.zeros(2)}, "expected the latent sites"),
        ({"mean": torch.zeros(2), "rate": torch.ones(3, 2)}, "site 'rate': expected shape"),
        ({"mean": torch.zeros(()), "rate": torch.ones(2)}, "site 'mean': expected shape"),
        ({"mean": torch.zeros(2), "rate": -torch.ones(2, 2)}, "'rate': expected values in its"),
        ({"mean": torch.full((2,), torch.nan), "rate": torch.ones(2, 2)}, "site 'mean'"),
    ],
)
def test_bad_starts(values, message):
    def model():
        pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("rate", dist.Gamma(torch.ones(2), 1.0).to_event(1))

    with pytest.raises(ValueError, match=message):
        pyro_target(model, (), {}).from_sites(values)


def test_first_runs_that_overflow_now_and_then_are_forgiven():
    class Moody:
        runs = 0

        def __call__(self):
            self.runs += 1
            scale = -1.0 if self.runs < 3 else 1.0
            pyro.sample("x", dist.Normal(0.0, scale))

    assert pyro_target(Moody(), (), {}).shapes == {"x": ()}
