"""Dealing draws into sets, and merging thinned transitions: nothing of a run is left out."""

import pytest
import torch
from helpers import Flat
from torch import nn

import pyro_gebm as pg
from pyro_gebm import inference_data
from pyro_gebm.cli import evaluation
from pyro_gebm.mcmc import Info
from pyro_gebm.mcmc.draws import merge


class Double(nn.Module):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return 2 * z


@pytest.fixture
def gebm() -> pg.GEBM:
    return pg.GEBM(pg.Base(Double(), pg.StandardNormal(1)), nn.Linear(1, 1))


@pytest.mark.parametrize("draws", [50, 98])
def test_sets_span_all_chains_and_the_whole_run(gebm: pg.GEBM, draws: int) -> None:
    chain, draw = torch.meshgrid(torch.arange(4), torch.arange(draws), indexing="ij")
    z = (1000 * draw + chain)[..., None].float()
    idata = inference_data.build({"z": z.numpy()}, {}, {})
    sets = evaluation.deal(gebm, idata, size=40)
    assert [len(x) for x in sets] == [40] * evaluation.NUM_SETS
    for x in sets:
        seen = x[:, 0] / 2
        assert set((seen % 1000).tolist()) == {0, 1, 2, 3}
        assert seen.max() // 1000 >= draws - 5 and seen.min() // 1000 <= 4
    assert len({float(value) for x in sets for value in x}) == 200, "no draw is in two sets"


def test_a_run_goes_again_with_the_steps_it_was_fitted_to() -> None:
    # On a normal fitted steps are all accepted; leapfrog's of that size are not.
    model = pg.GEBM(pg.Base(nn.Identity(), pg.StandardNormal(100)), Flat())
    settings = evaluation.Settings(32, 5, 60, 1.0, 0)
    (done,) = evaluation.run_kernels(model, ["HMC"], settings)
    assert done.idata.attrs["curvature"] == pytest.approx(1.0, abs=0.01)
    again = evaluation._run_again(model, done, settings, torch.randn(32, 100))
    assert again.info.accept_prob.mean() > 0.95


def test_merged_transitions_tell_the_worst() -> None:
    def told(steps: int, accept: float, diverging: bool, depth: int, error: float) -> Info:
        return Info(
            accept_prob=torch.tensor([accept]),
            diverging=torch.tensor([diverging]),
            num_steps=torch.tensor([steps]),
            tree_depth=torch.tensor([depth]),
            max_energy_error=torch.tensor([error]),
            reached_max_treedepth=torch.tensor([depth == 3]),
        )

    total = merge(told(7, 0.9, True, 3, -5.0), told(3, 0.6, False, 2, 1.0), 2)
    total = merge(total, told(1, 0.3, False, 1, 2.0), 3)
    assert (total.num_steps, total.tree_depth) == (11, 3)
    assert total.diverging and total.reached_max_treedepth
    assert total.max_energy_error == -5.0
    assert total.accept_prob.item() == pytest.approx(0.6)


def test_refit_leaves_the_statistics_of_a_batch_norm_alone() -> None:
    generator = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model = pg.GEBM(pg.Base(generator, pg.StandardNormal(2)), nn.Linear(3, 1))
    before = generator[1].running_mean.clone()
    trainer = pg.Trainer(model, pg.TrainConfig(refit_steps=3))
    for _ in trainer.refit_energy([torch.randn(16, 3)]):
        assert not generator[1].training
    assert torch.equal(generator[1].running_mean, before)
    assert generator[1].training


def test_uniform_prior_takes_whole_numbers() -> None:
    prior = pg.UniformPrior(2, -1, 1)
    assert prior.sample(100).is_floating_point()
    model = pg.GEBM(pg.Base(nn.Linear(2, 3), prior), nn.Linear(3, 1))
    assert model.log_partition.is_floating_point()


def test_settings_are_keywords_only() -> None:
    # NUTS(8) would set the step size, not the tree depth.
    with pytest.raises(TypeError):
        pg.NUTS(8)  # type: ignore[misc]


def test_interrupted_generate_returns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    class Interrupting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == 60:
                raise KeyboardInterrupt
            return x.square().sum(1)

    model = pg.GEBM(pg.Base(Double(), pg.StandardNormal(1)), Interrupting())
    with pytest.raises(KeyboardInterrupt):
        pg.generate(
            model, 400, kernel="MALA", num_chains=4, warmup_steps=10, seed=0, progress=False
        )
    assert calls == 60


def test_one_chain_is_compared_with_itself() -> None:
    still = torch.randn(1, 400, 1).numpy()
    drifting = still + torch.linspace(0, 5, 400)[None, :, None].numpy()
    assert inference_data.rhat(inference_data.build({"z": still}, {}, {})) < 1.02
    assert inference_data.rhat(inference_data.build({"z": drifting}, {}, {})) > 1.5
