"""Base samples that several energy steps have from one pass of the generator."""

import pytest
import torch
from helpers import small_gebm

import pyro_gebm as pg
from pyro_gebm.training import ChainsConfig
from pyro_gebm.training.negatives import TOGETHER, Negatives
from pyro_gebm.training.processes import Processes

ALONE = Processes(0, 1)


def negatives(procs=ALONE, **settings):
    gebm = small_gebm().double()
    return Negatives(gebm, pg.TrainConfig(**settings), procs, gebm.base.generator), gebm


def batches(*sizes):
    return [torch.zeros(size, 3, dtype=torch.float64) for size in sizes]


def test_samples_made_together_are_those_made_one_by_one():
    drawn, gebm = negatives(latents_per_datum=2)
    torch.manual_seed(3)
    together = drawn.draw(batches(4, 4, 2))
    torch.manual_seed(3)
    alone = [gebm.base.sample(2 * size) for size in (4, 4, 2)]
    assert [len(part) for part in together] == [8, 8, 4]
    for got, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        assert not got.requires_grad


def test_processes_share_each_batch_of_samples():
    torch.manual_seed(3)
    whole = negatives()[0].draw(batches(4, 4))
    for rank in (0, 1):
        torch.manual_seed(3)
        parts = negatives(Processes(rank, 2))[0].draw(batches(2, 2))
        for part, joint in zip(parts, whole, strict=True):
            torch.testing.assert_close(part, joint[2 * rank : 2 * rank + 2], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("settings", "size", "expected"),
    [
        ({}, 64, TOGETHER // (64 * 3)),
        ({"latents_per_datum": 4}, 64, TOGETHER // (64 * 12)),
        ({}, TOGETHER, 1),
        ({"accumulate": 2}, 64, TOGETHER // (64 * 3)),
        ({"objective": "contrastive", "mode": "energy"}, 64, 1),
        ({"chains": ChainsConfig(use_for="energy")}, 64, 1),
        ({"chains": ChainsConfig(use_for="base")}, 64, TOGETHER // (64 * 3)),
    ],
)
def test_only_small_samples_of_a_base_that_stands_still_are_made_together(settings, size, expected):
    assert negatives(**settings)[0].at_once(batches(size)[0]) == expected


def test_a_batch_norm_sees_one_batch_at_a_time():
    gebm = small_gebm()
    gebm.base.generator.append(torch.nn.BatchNorm1d(3))
    drawn = Negatives(gebm, pg.TrainConfig(), ALONE, gebm.base.generator)
    assert drawn.at_once(torch.zeros(4, 3)) == 1


def test_processes_and_parts_do_not_decide_what_is_drawn_when():
    (x,) = batches(32)
    assert negatives(Processes(1, 2))[0].at_once(x) == TOGETHER // (64 * 3)


def test_samples_made_in_parts_are_those_of_the_whole():
    torch.manual_seed(3)
    whole = negatives()[0].draw(batches(5, 4))
    torch.manual_seed(3)
    drawn, gebm = negatives(accumulate=2)
    sizes = []
    gebm.base.generator.register_forward_hook(lambda _m, given, _x: sizes.append(len(given[0])))
    for part, joint in zip(drawn.draw(batches(5, 4)), whole, strict=True):
        torch.testing.assert_close(part, joint, rtol=1e-12, atol=0)
    assert sizes == [3, 2, 2, 2]


def test_a_round_makes_the_samples_of_its_energy_steps_in_one_call():
    gebm, calls = small_gebm(), []
    gebm.base.generator.register_forward_hook(lambda _m, given, _x: calls.append(len(given[0])))
    config = pg.TrainConfig(base_steps=2, refit_steps=0, energy_steps=3, num_latents=5, ema_decay=0)
    loader = [torch.randn(8, 3)]
    infos = pg.Trainer(gebm, config).fit(loader)
    next(infos)
    calls.clear()
    next(infos)
    assert calls == [24, 5]
