"""What ``sample`` refuses, what it survives, and what Ctrl-C leaves."""

import numpy as np
import pyro.infer
import pytest
import torch
from helpers import (
    Counting,
    draws_of,
    normal,
    quiet_sample,
    rng,
    small_gebm,
    stat_names,
    stats_of,
    wide_normal,
)
from torch import nn

import pyro_gebm as pg
from pyro_gebm.mcmc import KERNELS
from pyro_gebm.sampling.start import MAX_REDRAWS

SMALL = {"num_chains": 4, "num_samples": 5, "warmup_steps": 5}
START = {"initial_params": torch.zeros(4, 2)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel": "gibbs"}, "kernel: expected one of auto, NUTS, .*; got 'gibbs'"),
        ({"kernel": pg.NUTS}, "kernel: expected a name, a kernel object .*; got <class"),
        ({"kernel": 3}, "kernel: expected a name, .*; got 3"),
        ({"num_samples": 0}, "num_samples: expected a whole number >= 1; got 0"),
        ({"num_samples": 2.5}, "num_samples: expected a whole number >= 1; got 2.5"),
        ({"num_chains": -1}, "num_chains: expected a whole number >= 1; got -1"),
        ({"warmup_steps": -1}, "warmup_steps: expected a whole number >= 0; got -1"),
        ({"thinning": 0}, "thinning: expected a whole number >= 1; got 0"),
        ({"thinning": True}, "thinning: expected a whole number >= 1; got True"),
        ({"beta": -1.0}, "beta: expected a number in .0.0, inf.; got -1.0"),
        ({"beta": torch.nan}, "beta: expected a number .*; got nan"),
        ({"seed": -1}, "seed: expected a whole number >= 0; got -1"),
        ({"seed": "one"}, "seed: expected a whole number >= 0; got 'one'"),
        ({"target_accept_prob": 0.0}, "target_accept_prob: expected .*; got 0.0"),
        ({"target_accept_prob": 1.0}, "target_accept_prob: expected .*; got 1.0"),
        ({"global_moves": "often"}, 'global_moves: expected "auto", None or .*; got .often'),
        ({"global_moves": 5}, "global_moves: expected .*; got 5"),
        ({"chunk_size": 0}, "chunk_size: expected a whole number >= 1; got 0"),
        ({"storage_dtype": "int8"}, "storage_dtype: expected .*float16.*; got 'int8'"),
        ({"kernel": pyro.infer.NUTS, "include_warmup": True}, "kernel: expected one of ours"),
        ({"resume": 3}, "resume: expected what sample.. returned.*; got int"),
        ({"initial_params": torch.zeros(3, 2)}, r"expected .*= \(4, 2\); got \(3, 2\)"),
        ({"initial_params": torch.zeros(4, 3)}, r"expected .*= \(4, 2\); got \(4, 3\)"),
        ({"initial_params": torch.zeros(4)}, r"expected .*= \(4, 2\); got \(4,\)"),
        ({"initial_params": [[0.0, 0.0]] * 4}, "initial_params: expected a tensor; got list"),
        ({"initial_params": {"x": torch.zeros(4, 2)}}, r"expected the one key 'z'; got \['x'\]"),
        (
            {"initial_params": torch.tensor([[0.0, 0.0]] * 3 + [[torch.nan, 0.0]])},
            r"initial_params: .* not finite at chain 3 \(1 in all\)",
        ),
    ],
)
def test_refusals(settings, message):
    gebm = small_gebm()
    energy = Counting(gebm.energy.forward)
    gebm.energy.forward = energy
    with pytest.raises(ValueError, match=message):
        quiet_sample(gebm, **{**SMALL, **settings})
    assert energy.calls <= 1  # before any sampling


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (normal, {}, r"initial_params: a potential function needs starts .*; got None"),
        (normal, {"initial_params": torch.zeros(3, 2)}, r"expected .*= \(4, D\); got \(3, 2\)"),
        (normal, {"initial_params": torch.zeros(())}, r"expected .*= \(4, D\); got \(\)"),
        (
            normal,
            {"initial_params": torch.zeros(4, 2).int()},
            r"expected float32 or .*torch.int",
        ),
        (normal, {"kernel": "IMH", **START}, "IMH: expected a reference to propose from; got None"),
        (normal, {"include_x": True, **START}, "include_x: expected False .* no x"),
        ("model", START, "model: expected a GEBM, a Pyro model or a potential function; got str"),
        (lambda z: normal(z)[:, None], START, r"shape \(4,\) .*got \(4, 1\)"),
        (lambda z: normal(z).sum(), START, r"shape \(4,\) .*got \(\)"),
        # The square root has no gradient at zero: such a chain would never move.
        (lambda z: z.square().sum(-1).sqrt(), START, r"gradient is not finite at chain 0 \(4"),
    ],
)
def test_refusals_of_potentials(model, settings, message):
    with pytest.raises(ValueError, match=message):
        quiet_sample(model, **SMALL, **settings)


def test_starts_outside_the_support_are_refused():
    gebm = small_gebm(pg.UniformPrior(2))
    start = torch.tensor([[0.5, 0.5], [0.2, 0.9], [0.5, 1.5], [0.1, 0.1]])
    with pytest.raises(ValueError, match=r"not finite at chain 2 \(1 in all\)"):
        quiet_sample(gebm, initial_params=start, **SMALL)


def test_generate_refuses():
    with pytest.raises(ValueError, match="model: expected a GEBM; got function"):
        pg.generate(normal, 5)
    with pytest.raises(ValueError, match="num_samples: expected a whole number >= 1; got 0"):
        pg.generate(small_gebm(), 0)


class Broken(nn.Module):
    """An energy of NaN wherever x₀ exceeds ``limit``; counts its calls."""

    def __init__(self, limit):
        super().__init__()
        self.limit, self.calls = limit, 0

    def forward(self, x):
        self.calls += 1
        return torch.where(x[:, 0] > self.limit, torch.nan, 0.5 * x[:, 0])


def on_line(energy):
    return pg.GEBM(pg.Base(nn.Identity(), pg.StandardNormal(2)), energy)


def test_energy_that_is_nan_everywhere_is_reported_at_once():
    gebm = on_line(Broken(-torch.inf))
    with pytest.raises(ValueError, match=r"no start of finite potential .* 4 of 4 chains"):
        quiet_sample(gebm, **SMALL)
    assert gebm.energy.calls <= MAX_REDRAWS == 100


@pytest.mark.parametrize("kernel", KERNELS)
def test_bad_regions_are_left_out(kernel):
    # A quarter of the prior is good: the starts are redrawn until they are there.
    idata = quiet_sample(
        on_line(Broken(-0.67)), kernel=kernel, num_chains=200, num_samples=5, warmup_steps=20
    )
    assert draws_of(idata)[..., 0].max() <= -0.67
    for name in stat_names(idata) - {"energy_error", "max_energy_error", "global_acceptance_rate"}:
        assert np.isfinite(stats_of(idata, name)).all()
    assert stats_of(idata, "diverging").any()


class CustomError(Exception):
    """Raised by an energy."""


@pytest.mark.parametrize("fail_at", [1, 3, 10, 20])
def test_errors_of_the_energy_come_through(fail_at):
    gebm = small_gebm()
    error = CustomError("the energy's own")
    gebm.energy.forward = Counting(gebm.energy.forward, fail_at, error)
    before = torch.get_rng_state()
    with pytest.raises(CustomError) as caught:
        quiet_sample(gebm, kernel="MALA", **SMALL, thinning=3)
    assert caught.value is error
    assert all(module.training for module in gebm.modules())
    assert all(parameter.requires_grad for parameter in gebm.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def interrupted_at(call, kernel, thinning=1):
    potential = Counting(normal, call)
    start = torch.randn(3, 2, generator=rng())
    settings = {"num_chains": 3, "num_samples": 30, "warmup_steps": 10, "thinning": thinning}
    kernel = KERNELS[kernel]().bind(wide_normal(start))
    return potential, quiet_sample(potential, initial_params=start, kernel=kernel, **settings)


@pytest.mark.parametrize("thinning", [1, 2])
@pytest.mark.parametrize("kernel", KERNELS)
def test_ctrl_c_leaves_a_prefix(kernel, thinning):
    potential, whole = interrupted_at(0, kernel, thinning)
    ends = calls_until_whole(whole, kernel)
    first = potential.calls - ends[-1]
    for call in np.linspace(first + ends[-1] // 2, potential.calls, 8).astype(int):
        _, part = interrupted_at(int(call), kernel, thinning)
        done = draws_of(part).shape[1]
        assert 1 <= done < 30
        assert done == (ends + first < call).sum()
        assert part.attrs["interrupted"] == 1 and whole.attrs["interrupted"] == 0
        assert np.array_equal(draws_of(part), draws_of(whole)[:, :done])
        for name in stat_names(whole):
            assert np.array_equal(stats_of(part, name), stats_of(whole, name)[:, :done])


def calls_until_whole(idata, kernel):
    """Calls of the potential after which all chains have each of the draws, (S,)."""
    steps = stats_of(idata, "n_steps")
    # NUTS runs freely: a draw is whole when the slowest chain so far has it. In step each
    # waits for its longest trajectory.
    return steps.cumsum(1).max(0) if kernel == "NUTS" else steps.max(0).cumsum()


def test_interrupted_run_of_nuts_can_go_on():
    # Chains that were ahead have thrown draws away, which they make again.
    potential, whole = interrupted_at(0, "NUTS")
    _, part = interrupted_at(potential.calls * 3 // 4, "NUTS")
    done = draws_of(part).shape[1]
    assert 1 <= done < 30
    settings = {"kernel": "NUTS", "num_chains": 3, "num_samples": 30 - done}
    rest = quiet_sample(normal, resume=part, **settings)
    assert np.array_equal(np.concatenate([draws_of(part), draws_of(rest)], 1), draws_of(whole))


@pytest.mark.parametrize("call", [1, 2, 3, 8, 13])
def test_ctrl_c_during_warmup_propagates(call):
    # 1 checks the start, 2 is the first state, then come the search and 10 steps of warm-up.
    with pytest.raises(KeyboardInterrupt):
        interrupted_at(call, "Langevin")


def test_ctrl_c_restores_the_model():
    gebm = small_gebm()
    gebm.energy.forward = Counting(gebm.energy.forward, 60)
    before = torch.get_rng_state()
    idata = quiet_sample(gebm, kernel="MALA", num_chains=4, num_samples=100, warmup_steps=10)
    assert 1 <= draws_of(idata).shape[1] < 60
    assert all(module.training for module in gebm.modules())
    assert all(parameter.requires_grad for parameter in gebm.parameters())
    assert torch.equal(torch.get_rng_state(), before)
