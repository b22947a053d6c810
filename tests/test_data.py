"""Toys against their definitions, the digits' split, and the loader's epochs."""

import math

import pytest
import torch
from sklearn import datasets

from pyro_gebm.data import BatchLoader, load_digits, sample_toy, toy_mode_std, toy_modes

MIXTURES = ["gaussians8", "gaussians25"]
TOYS = [*MIXTURES, "moons", "swissroll"]
MANY = 100_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def samples():
    return {name: sample_toy(name, MANY, generator=generator(7)).double() for name in TOYS}


# --- toys ------------------------------------------


def definition(name):
    """Noise-free points on a fine grid (N, 2) of equal mass, and the noise, from the docstring."""
    t = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    if name == "moons":
        t = t * math.pi
        upper = torch.stack([t.cos(), t.sin()], dim=1)
        lower = torch.stack([1 - t.cos(), 0.5 - t.sin()], dim=1)
        return 3 * (torch.cat([upper, lower]) - torch.tensor([0.5, 0.25], dtype=torch.float64)), 0.3
    if name == "swissroll":
        t = 1.5 * math.pi + 3 * math.pi * t
        return torch.stack([t * t.cos() / 2.5, t * t.sin() / 2.5], dim=1), 0.15
    if name == "gaussians8":
        points = [(math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)) for k in range(8)]
        return 4 * torch.tensor(points, dtype=torch.float64), 0.3
    grid = [(2 * i, 2 * j) for i in range(-2, 3) for j in range(-2, 3)]
    return torch.tensor(grid, dtype=torch.float64), 0.15


@pytest.mark.parametrize("name", TOYS)
def test_moments_are_those_of_the_definition(name, samples):
    x = samples[name]
    points, noise = definition(name)

    def features(t):  # first and second moments
        return torch.stack([t[:, 0], t[:, 1], t[:, 0] ** 2, t[:, 1] ** 2, t[:, 0] * t[:, 1]])

    expected = features(points).mean(dim=1)
    expected[2:4] += noise**2
    error = features(x).mean(dim=1) - expected
    assert (error.abs() < 4 * features(x).std(dim=1) / math.sqrt(MANY)).all()


@pytest.mark.parametrize("name", TOYS)
def test_toys_are_a_few_units_wide(name, samples):
    deviation = samples[name].std(dim=0)
    assert (deviation > 1.4).all() and (deviation < 3.1).all()


@pytest.mark.parametrize("name", ["moons", "swissroll"])
def test_points_scatter_around_the_curve_with_the_stated_noise(name, samples):
    # Far from its own ends and from other branches, the squared distance to the curve is noise²
    # in one direction (the curvature adds a term of order noise/radius, squared).
    curve, noise = definition(name)
    x = samples[name][:3000]
    distance = torch.cdist(x, curve[::40]).min(dim=1).values
    mean_square = distance.square().mean().item()
    standard_error = distance.square().std().item() / math.sqrt(len(x))
    assert abs(mean_square - noise**2) < 4 * standard_error + 0.06 * noise**2
    assert distance.max() < 5.5 * noise


@pytest.mark.parametrize("name", MIXTURES)
def test_mixture_has_equal_masses_and_isotropic_modes(name, samples):
    x, modes = samples[name], toy_modes(name).double()
    std, count = toy_mode_std(name), len(modes)
    torch.testing.assert_close(
        modes.sort(dim=0).values, definition(name)[0].sort(dim=0).values, rtol=0, atol=3e-6
    )
    nearest = torch.cdist(x, modes).argmin(dim=1)
    mass = torch.bincount(nearest, minlength=count) / MANY
    standard_error = math.sqrt((1 / count) * (1 - 1 / count) / MANY)
    assert ((mass - 1 / count).abs() < 4 * standard_error).all()
    residual = (x - modes[nearest]) / std
    for axis in range(2):
        variance = residual[:, axis].square().mean().item()
        assert abs(variance - 1) < 4 * math.sqrt(2 / MANY)
    assert abs((residual[:, 0] * residual[:, 1]).mean().item()) < 4 / math.sqrt(MANY)


@pytest.mark.parametrize("name", TOYS)
def test_toys_follow_their_generator_and_no_other(name):
    state = torch.get_rng_state()
    first = sample_toy(name, 50, generator=generator(3))
    assert torch.equal(first, sample_toy(name, 50, generator=generator(3)))
    assert not torch.equal(first, sample_toy(name, 50, generator=generator(4)))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (50, 2)


# --- digits ------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_digits_split_is_complete_and_disjoint(digits):
    assert digits.train_images.shape == (1257, 1, 8, 8)
    assert digits.test_images.shape == (540, 1, 8, 8)
    both = torch.cat([digits.train_images, digits.test_images]).flatten(1)
    labels = torch.cat([digits.train_labels, digits.test_labels])
    original = torch.tensor(datasets.load_digits().data / 8 - 1, dtype=torch.float32)
    target = torch.tensor(datasets.load_digits().target)

    def canonical(x, y):  # rows with their labels, as a sorted multiset
        return sorted(map(tuple, torch.cat([x, y[:, None].float()], dim=1).tolist()))

    assert canonical(both, labels) == canonical(original, target)


def test_digits_are_stratified(digits):
    train = torch.bincount(digits.train_labels, minlength=10)
    test = torch.bincount(digits.test_labels, minlength=10)
    assert ((test - 0.3 * (train + test)).abs() <= 1).all()


def test_digits_range_and_types(digits):
    for images in (digits.train_images, digits.test_images):
        assert images.dtype == torch.float32
        assert (images.min(), images.max()) == (-1, 1)
    assert digits.train_labels.dtype == digits.test_labels.dtype == torch.int64


def test_digits_are_the_same_every_time_and_shuffled(digits):
    assert all(torch.equal(a, b) for a, b in zip(digits, load_digits(), strict=True))
    # The file is nearly ordered 0..9 over and over: the split must not be its head and tail.
    head = torch.tensor(datasets.load_digits().target[:1257])
    assert not torch.equal(digits.train_labels, head)


# --- loader ------------------------------------------


def take(loader, count):
    return [next(loader) for _ in range(count)]


def test_an_epoch_without_remainder_visits_each_datum_once():
    loader = BatchLoader(torch.arange(12), 4, generator=generator())
    epochs = [torch.cat(take(loader, 3)) for _ in range(3)]
    for epoch in epochs:
        assert epoch.sort().values.tolist() == list(range(12))
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


def test_a_remainder_is_dropped_but_not_always_the_same():
    loader = BatchLoader(torch.arange(11), 4, generator=generator())
    counts = torch.zeros(11)
    num_epochs = 2000
    for _ in range(num_epochs):
        epoch = torch.cat(take(loader, 2))
        assert len(epoch.unique()) == 8
        counts[epoch] += 1
    share = 8 / 11  # each epoch leaves out 3 of 11 at random
    standard_error = math.sqrt(share * (1 - share) / num_epochs)
    assert ((counts / num_epochs - share).abs() < 4 * standard_error).all()


def test_batches_keep_rows_shape_and_dtype():
    data = torch.arange(60, dtype=torch.float64).reshape(10, 2, 3)
    batch = next(iter(BatchLoader(data, 10, generator=generator())))
    assert batch.shape == (10, 2, 3) and batch.dtype == torch.float64
    rows = batch[:, 0, 0].argsort()
    assert torch.equal(batch[rows], data)


def test_same_generator_state_same_batches_and_global_rng_untouched():
    state = torch.get_rng_state()
    first = take(BatchLoader(torch.arange(10), 3, generator=generator(5)), 7)
    second = take(BatchLoader(torch.arange(10), 3, generator=generator(5)), 7)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seen", [0, 1, 3, 5])
def test_a_restored_loader_continues_bit_for_bit(seen):
    loader = BatchLoader(torch.arange(10), 3, generator=generator(5))
    take(loader, seen)
    state = loader.state_dict()
    expected = take(loader, 8)
    other = BatchLoader(torch.arange(10), 3, generator=generator(99))
    other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(take(other, 8), expected, strict=True))
    loader.load_state_dict(state)  # the state is a snapshot: later batches did not change it
    assert torch.equal(next(loader), expected[0])


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_the_ranks_slices_are_the_batches_of_one_process(world_size):
    data = torch.arange(40.0).reshape(20, 2)
    joint = take(BatchLoader(data, 6, generator=generator(5)), 10)
    slices = [
        take(
            BatchLoader(data, 6, generator=generator(5), rank=rank, world_size=world_size),
            10,
        )
        for rank in range(world_size)
    ]
    for batch, parts in zip(joint, zip(*slices, strict=True), strict=True):
        assert {len(part) for part in parts} == {6 // world_size}
        assert torch.equal(torch.cat(parts), batch)


def test_a_state_fits_any_number_of_processes():
    data = torch.arange(20)
    loader = BatchLoader(data, 6, generator=generator(5), rank=1, world_size=3)
    take(loader, 4)
    state, expected = loader.state_dict(), []
    for rank in range(2):
        other = BatchLoader(data, 6, generator=generator(99), rank=rank, world_size=2)
        other.load_state_dict(state)
        expected.append(take(other, 7))
    one = BatchLoader(data, 6, generator=generator(99))
    one.load_state_dict(state)
    for batch, parts in zip(take(one, 7), zip(*expected, strict=True), strict=True):
        assert torch.equal(torch.cat(parts), batch)
    assert torch.equal(take(loader, 7)[-1], batch[2:4])


def test_batches_go_to_the_device_asked_for():
    data = torch.zeros(6, 2, dtype=torch.float16)
    batch = next(BatchLoader(data, 4, generator=generator(), device="meta"))
    assert batch.device.type == "meta" and batch.shape == (4, 2) and batch.dtype == data.dtype
    assert next(BatchLoader(data, 4, generator=generator())).device == data.device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("home", ["cpu", "cuda"])
def test_batches_on_a_gpu_are_those_of_the_cpu(home):
    data = torch.randn(1000, 50)
    on_cpu = take(BatchLoader(data, 100, generator=generator(5)), 200)
    on_gpu = take(BatchLoader(data.to(home), 100, generator=generator(5), device="cuda"), 200)
    assert all(batch.is_cuda for batch in on_gpu)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(on_gpu, on_cpu, strict=True))


# --- refusals ------------------------------------------


def share(batch_size, **of):
    return BatchLoader(torch.zeros(9), batch_size, generator=generator(), **of)


def planted(value):
    data = torch.zeros(6, 2)
    data[4, 1] = value
    return data


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_toy("rings", 5, generator=generator()), "name: .*moons.*'rings'"),
        (lambda: sample_toy("moons", 0, generator=generator()), "num_samples: .*got 0"),
        (lambda: toy_modes("moons"), "name: .*gaussians8, gaussians25.*'moons'"),
        (lambda: toy_mode_std("swissroll"), "name: .*'swissroll'"),
        (
            lambda: BatchLoader(planted(math.nan), 2, generator=generator()),
            r"nan at index \(4, 1\)",
        ),
        (
            lambda: BatchLoader(planted(math.inf), 2, generator=generator()),
            r"inf at index \(4, 1\)",
        ),
        (lambda: BatchLoader(torch.zeros(3), 4, generator=generator()), "batch_size: .*3; got 4"),
        (lambda: BatchLoader(torch.zeros(3), 0, generator=generator()), "batch_size: .*got 0"),
        (lambda: share(4, world_size=3), "batch_size: .*multiple of world_size, 3; got 4"),
        (lambda: share(4, world_size=0), "world_size: .*got 0"),
        (lambda: share(4, rank=2, world_size=2), "rank: .*0..1; got 2"),
        (lambda: share(4, rank=-1, world_size=2), "rank: .*got -1"),
        (lambda: BatchLoader(torch.zeros(()), 1, generator=generator()), r"data: .*\(\)"),
        (
            lambda: BatchLoader(torch.zeros(3), 1, generator=generator()).load_state_dict(
                BatchLoader(torch.zeros(4), 1, generator=generator()).state_dict()
            ),
            "state: .*3 data; got one for 4",
        ),
    ],
)
def test_refusals_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
