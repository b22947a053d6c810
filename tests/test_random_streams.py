"""Random streams: independent by seed, phase, block and step, and of nothing else."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import rng
from scipy import stats

from pyro_gebm.mcmc.random import (
    BLOCK,
    Streams,
    draw_seed,
    mix,
    normal,
    shared_jitter,
    shared_parity,
    shared_uniform,
    uniform,
)

CPU = torch.device("cpu")
STEPS, DIM = 200, 8


def noise(seed=0, phase=0, chains=2 * BLOCK, steps=range(STEPS), draw=normal):
    """(steps, chains, DIM)."""
    streams = Streams(seed, chains, CPU, phase)
    like = torch.zeros(chains, DIM)
    return torch.stack([draw(like, streams.at(step)) for step in steps])


def correlation(one, other):
    """In standard errors: independent numbers have correlation 0 ± 1/√n."""
    pair = np.stack([one.reshape(-1).numpy(), other.reshape(-1).numpy()])
    return np.corrcoef(pair)[0, 1] * math.sqrt(pair.shape[1])


def test_normals_and_uniforms_have_their_laws():
    drawn = noise().flatten().numpy()
    assert stats.kstest(drawn, stats.norm.cdf).pvalue > 1e-4
    # Standard errors of mean, variance and kurtosis of n standard normals.
    errors = np.sqrt(np.array([1, 2, 96]) / drawn.size)
    moments = np.array([drawn.mean(), (drawn**2).mean(), (drawn**4).mean()])
    assert (abs(moments - [0, 1, 3]) < 4 * errors).all()
    flat = noise(draw=uniform).flatten().numpy()
    assert stats.kstest(flat, stats.uniform.cdf).pvalue > 1e-4


@pytest.mark.parametrize("lag", [1, 2, 64])
def test_steps_are_independent(lag):
    drawn = noise()
    assert abs(correlation(drawn[:-lag], drawn[lag:])) < 4


def test_blocks_phases_and_seeds_are_independent():
    drawn = noise()
    others = {
        "block": drawn[:, BLOCK:],
        "phase": noise(phase=1)[:, :BLOCK],
        "seed": noise(seed=1)[:, :BLOCK],
        "high word of the seed": noise(seed=2**32)[:, :BLOCK],
        "shifted by a step": noise(phase=1)[1:, :BLOCK],
    }
    for what, other in others.items():
        assert abs(correlation(drawn[: len(other), :BLOCK], other)) < 4, what


def test_one_generator_for_all_steps_would_be_seen():
    # The measure itself: the same noise again has a correlation of one.
    drawn = noise(steps=[0] * 10)
    assert correlation(drawn[:-1], drawn[1:]) > 50


def test_no_two_streams_coincide():
    seeds = [
        Streams(seed, (block + 1) * BLOCK, CPU, phase).at(step).blocks[block].initial_seed()
        for seed, phase, block, step in itertools.product(
            [0, 1, 2**32, 2**40 + 1], [0, 1, 2], [0, 1, 2], range(-1, 9)
        )
    ]
    assert len(set(seeds)) == len(seeds)
    # Starts are drawn from torch's global generator under the seed itself.
    assert not {0, 1} & set(seeds)


def test_mix_is_one_to_one():
    assert len({mix(number, 12345) for number in range(100_000)}) == 100_000


def test_noise_depends_on_the_step_and_not_on_the_way_there():
    straight = noise(steps=[5])
    assert torch.equal(noise(steps=[9, 2, 5])[-1:], straight)
    streams = Streams(0, 2 * BLOCK, CPU).at(5)
    first, second = (normal(torch.zeros(2 * BLOCK, DIM), streams) for _ in range(2))
    assert torch.equal(first, straight[0])
    assert abs(correlation(first, second)) < 4


def test_noise_does_not_depend_on_the_number_of_chains():
    many = Streams(3, 3 * BLOCK, CPU).at(4)
    few = Streams(3, BLOCK, CPU).at(4)
    like = torch.zeros(3 * BLOCK, DIM)
    for draw in (normal, uniform):
        assert torch.equal(draw(like, many)[:BLOCK], draw(like[:BLOCK], few))
    for shared in (shared_uniform, shared_jitter, shared_parity, draw_seed):
        assert shared(many) == shared(few)


def test_shared_uniforms_are_uniform():
    streams = Streams(0, 1, CPU)
    drawn = np.array([shared_uniform(streams.at(step)) for step in range(5000)])
    assert stats.kstest(drawn, stats.uniform.cdf).pvalue > 1e-4
    lagged = np.corrcoef(drawn[1:], drawn[:-1])[0, 1] * math.sqrt(len(drawn))
    assert abs(lagged) < 4


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shared_jitter_is_even(seed):
    streams = Streams(seed, 1, CPU)
    jitter = np.array([shared_jitter(streams.at(step)) for step in range(1024)])
    assert (jitter >= 0).all() and (jitter < 1).all()
    # Van der Corput: N points have a discrepancy of at most (log2 N + 1) / N, a random shift
    # at most doubles it; independent uniforms have about 1 / √N.
    for start, size in [(0, 64), (0, 1000), (37, 200)]:
        part = np.sort(jitter[start : start + size])
        place = np.arange(size) / size
        discrepancy = max(abs(part - place).max(), abs(part - place - 1 / size).max())
        assert discrepancy < 2 * (math.log2(size) + 1) / size
    # Aligned runs of 2^k fall into 2^k equal intervals, shifted alike: spacings are 2^-k.
    spacing = np.diff(np.sort(jitter[63 : 63 + 64]))
    np.testing.assert_allclose(spacing, 1 / 64, atol=1e-9)


def test_jitter_is_shifted_by_the_seed():
    shifts = [Streams(seed, 1, CPU).shift for seed in range(2000)]
    assert stats.kstest(shifts, stats.uniform.cdf).pvalue > 1e-4


def test_parity_alternates():
    streams = Streams(0, 1, CPU)
    assert [shared_parity(streams.at(step)) for step in range(4)] == [0, 1, 0, 1]


def test_no_two_chains_share_a_seed_of_their_own():
    streams = Streams(0, 300, CPU)
    for number in (0, 1, 17):
        assert len({streams.chain_seed(chain, number) for chain in range(300)}) == 300
    assert len({streams.chain_seed(7, number) for number in range(3000)}) == 3000
    # What is cut from a larger batch has those of its place there, another phase others.
    part = Streams(0, 100, CPU, blocks=[2, 3])
    assert [part.chain_seed(c, 5) for c in (0, 99)] == [
        streams.chain_seed(c, 5) for c in (128, 227)
    ]
    assert streams.chain_seed(7, 0) != Streams(0, 300, CPU, phase=1).chain_seed(7, 0)
    assert streams.at(9).chain_seed(7, 0) == streams.at(2).chain_seed(7, 0)


def test_torchs_own_generator_serves_as_well():
    generator = rng(3)
    drawn = [shared_parity(generator) for _ in range(400)]
    assert abs(sum(drawn) - 200) < 4 * 10
    assert 0 <= shared_jitter(generator) < 1
    assert torch.equal(normal(torch.zeros(5, 2), rng(1)), torch.randn(5, 2, generator=rng(1)))
