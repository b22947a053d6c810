"""The sliced Wasserstein distance against closed forms."""

import math

import pytest
import torch
from helpers import rng

from pyro_gebm.metrics import sliced_wasserstein


def test_one_dimension_is_the_distance_of_sorted_samples():
    x, y = torch.tensor([3.0, 0.0, 1.0]), torch.tensor([5.0, 1.0, 1.0])
    expected = math.sqrt((1 + 0 + 4) / 3)  # 0, 1, 3 beside 1, 1, 5
    assert sliced_wasserstein(x, y, generator=rng()) == pytest.approx(expected, rel=1e-12)


def test_gaussians_of_other_mean_and_scale():
    # Along every direction N(0, 1) and N(θ·m, s²): W² = (θ·m)² + (s - 1)², whose mean over the
    # circle is |m|²/2 + (s - 1)².
    n, shift, scale = 5_000, torch.tensor([3.0, 4.0]), 1.5
    x = torch.randn(n, 2, generator=rng(1))
    y = shift + scale * torch.randn(n, 2, generator=rng(2))
    found = sliced_wasserstein(x, y, num_directions=1000, generator=rng(3))
    truth = math.sqrt(12.5 + 0.25)
    # Directions: (θ·m)² = 25 cos², standard deviation 25/√8; samples: mean and scale to 1/√n.
    error = math.hypot(25 / math.sqrt(8 * 1000), 2 * 5 * 2.5 / math.sqrt(n)) / (2 * truth)
    assert found == pytest.approx(truth, abs=4 * error)


def test_images_are_vectors_and_a_sample_is_no_distance_from_itself():
    x = torch.randn(50, 1, 2, 3, generator=rng())
    again = sliced_wasserstein(x, x[torch.randperm(50)], generator=rng())
    assert again == pytest.approx(0, abs=1e-14)
    flat = sliced_wasserstein(x.flatten(1), x.flatten(1) + 1, generator=rng(1))
    assert sliced_wasserstein(x, x + 1, generator=rng(1)) == flat > 0


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        sliced_wasserstein(torch.zeros(3, 2), torch.zeros(4, 2), generator=rng())
