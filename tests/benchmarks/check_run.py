"""Holds the run and its page to what they say: ``pytest tests/benchmarks/check_run.py``."""

import argparse
import os

import digits
import lineup
import numpy as np
import pytest
import torch
from jobs import Job, Prepared, Run
from page import best, groups, markdown, page, table
from results import Results
from run import rounds_left
from worker import TimeLimitError, Worker, time_limit

JOB = Job("ours", "HMC", "modes8", chains=4, draws=20, warmup=20)
OPTIONS = argparse.Namespace(rounds=2, once_above=5.0, retry=False)
FIGURES = {
    **dict.fromkeys(["ess", "tail_per_second", "bulk_per_kgradient", "tail_per_kgradient"], 1.0),
    **dict.fromkeys(["rhat", "bias_max", "overhead", "memory_mib", "load"], 1.0),
    **{"cpu_seconds": 1.0, "bulk_per_second": 50.0, "verdict": "ok"},
}


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "results.json")


@pytest.fixture
def fake(monkeypatch):
    """A library whose runs do what they are told."""

    def put(runner):
        monkeypatch.setitem(lineup.PREPARE, "ours", lambda *_: Prepared(runner, 0.0))

    return put


def test_what_is_in_the_file_is_not_run_again(results):
    assert rounds_left(results, JOB, OPTIONS)
    results.add(JOB, FIGURES)
    results.add(JOB, FIGURES)
    again = Results(results.path)
    assert not rounds_left(again, JOB, OPTIONS)
    assert rounds_left(again, JOB, argparse.Namespace(**{**vars(OPTIONS), "rounds": 3}))
    assert rounds_left(again, JOB._replace(draws=21), OPTIONS), "other lengths are another job"


def test_slow_jobs_run_once_and_failed_ones_are_not_tried_again(results):
    results.add(JOB, {**FIGURES, "cpu_seconds": 6.0})
    assert not rounds_left(results, JOB, OPTIONS)
    other = JOB._replace(kernel="NUTS")
    results.add(other, {"error": "failed: it broke", "traceback": ""})
    assert not rounds_left(results, other, OPTIONS)
    assert rounds_left(results, other, argparse.Namespace(**{**vars(OPTIONS), "retry": True}))


def test_the_page_shows_failures_and_never_ranks_what_has_not_converged(results):
    results.add(JOB, FIGURES)
    faster = {**FIGURES, "bulk_per_second": 900.0, "verdict": "R-hat"}
    results.add(JOB._replace(library="blackjax"), faster)
    results.add(JOB._replace(library="pyro"), {"error": "failed: <it> broke", "traceback": ""})
    _, rows = table(groups(results.data["cells"])[0])
    assert [row[2] for row in rows] == ["ok", "R-hat", "failed: <it> broke"]
    _, ((_, _, ours, pyro, _, blackjax, *_),) = best(results.data)
    assert (ours, pyro, blackjax) == ("50 (HMC)", "failed", "none converged")
    assert "&lt;it&gt; broke" in page(results.data) and "<it>" not in page(results.data)
    assert "| failed: <it> broke |" in markdown(results.data)


def test_a_run_that_raises_is_a_failure(fake, tmp_path):
    fake(lambda seed: 1 / 0)
    worker = Worker(JOB, tmp_path, limit=20.0)
    assert "once_seconds" in worker.ready()
    assert worker.run(1)["error"] == "failed: ZeroDivisionError: division by zero"
    worker.close()


def test_a_process_that_dies_is_a_failure(fake, tmp_path):
    fake(lambda seed: os._exit(3) if seed else None)
    worker = Worker(JOB, tmp_path, limit=20.0)
    worker.ready()
    assert worker.run(1)["error"] == "failed: its process died (3)"
    worker.close()


def test_draws_that_are_not_finite_are_a_failure(fake, tmp_path):
    z = np.full((4, 20, 2), np.nan, np.float32)
    fake(lambda seed: Run(z, 1.0, 1.0, 80, 80, 0))
    worker = Worker(JOB, tmp_path, limit=20.0)
    worker.ready()
    assert "finite" in worker.run(1)["error"]
    worker.close()


def test_memory_of_a_run_is_its_own(fake, tmp_path):
    def runner(seed):
        big = np.ones(8_000_000 * (1 if seed else 0))  # 61 MiB, freed at the end
        z = np.random.default_rng(seed).normal(size=(4, 20, 2)) + 0 * big[:1].sum()
        return Run(z.astype(np.float32), 1.0, 1.0, 80, 80, 0)

    fake(runner)
    worker = Worker(JOB, tmp_path, limit=60.0)
    worker.ready()
    assert 55 < worker.run(1)["memory_mib"] < 75
    worker.close()


def test_time_is_the_processors():
    with pytest.raises(TimeLimitError, match="over 0 s"), time_limit(0.2):
        while True:
            pass


def test_the_digits_are_the_model(tmp_path, monkeypatch):
    untrained = digits.pg.TrainConfig(base_steps=0, refit_steps=0)
    monkeypatch.setattr(digits, "SHORT_TRAINING", untrained)
    monkeypatch.setattr(digits, "DRAWS", 20_000)
    digits.train(tmp_path / "digits-short.npz", short=True)
    target = digits.make_target("digits-short", tmp_path)
    torch.manual_seed(0)
    gebm = digits.build().eval()
    z = torch.from_numpy(target.start(50, 0))
    difference = (target.torch_potential()(z) - gebm.potential_fn(z)).detach()
    assert difference.std() < 1e-5 and gebm.energy(gebm.base.generator(z)).std() > 1e-3
    # An untrained energy hardly moves the law of z from the base's.
    assert abs(target.mean).max() < 0.1 and abs(target.second_moment - 1).max() < 0.1
    jax = pytest.importorskip("jax")
    by_jax = np.asarray(jax.vmap(target.jax_potential())(z.numpy()))
    np.testing.assert_allclose(target.torch_potential()(z).numpy(), by_jax, rtol=1e-4, atol=1e-4)
