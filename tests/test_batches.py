"""Batches without end, and resumed: what follows is, bit for bit, what would have followed."""

import io

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from pyro_gebm.data import BatchLoader
from pyro_gebm.training.batches import Batches

DATA = torch.arange(22.0).reshape(11, 2)
EPOCH = 3  # batches of 4, 4 and 3 data


def rng(seed=5):
    return torch.Generator().manual_seed(seed)


class Noisy(Dataset):
    """Data with noise from the global generator, of this process or of a worker."""

    def __len__(self):
        return len(DATA)

    def __getitem__(self, index):
        return DATA[index] + torch.randn(2)


class Saving:
    """A loader with a state of its own, which draws a random number for every epoch."""

    def __init__(self):
        self.order, self.next = None, 0

    def __iter__(self):
        seed = int(torch.randint(2**31, ()))
        if self.order is None:
            self.order, self.next = torch.randperm(11, generator=rng(seed)), 0
        return self.rest()

    def rest(self):
        while self.next < EPOCH:
            self.next += 1
            yield DATA[self.order[4 * self.next - 4 : 4 * self.next]]
        self.order = None

    def state_dict(self):
        return {"order": self.order, "next": self.next}

    def load_state_dict(self, state):
        self.order, self.next = state["order"], state["next"]


def stream():
    while True:
        yield torch.randn(4, 2)


def torch_loader(dataset=None, **settings):
    return DataLoader(dataset or TensorDataset(DATA), batch_size=4, **settings)


def batched(sampler):
    dataset = TensorDataset(DATA)
    return DataLoader(dataset, batch_sampler=BatchSampler(sampler, 4, False))


def sampled(sampler):
    return torch_loader(sampler=sampler)


def distributed(**settings):
    return sampled(DistributedSampler(DATA, num_replicas=2, rank=1, **settings))


LOADERS = {
    "list": lambda: list(DATA.split(4)),
    "tuples": lambda: [(x, 1) for x in DATA.split(4)],
    "iterator": stream,
    "BatchLoader": lambda: BatchLoader(DATA, 4, generator=rng()),
    "own state": Saving,
    "in order": torch_loader,
    "shuffle": lambda: torch_loader(shuffle=True),
    "own generator": lambda: torch_loader(shuffle=True, generator=rng()),
    "noise": lambda: torch_loader(Noisy(), shuffle=True),
    "RandomSampler": lambda: sampled(RandomSampler(DATA, generator=rng())),
    "replacement": lambda: sampled(RandomSampler(DATA, replacement=True)),
    "SubsetRandomSampler": lambda: sampled(SubsetRandomSampler(range(11), generator=rng())),
    "WeightedRandomSampler": lambda: sampled(WeightedRandomSampler([1.0] * 11, 11)),
    "BatchSampler": lambda: batched(RandomSampler(DATA, generator=rng())),
    "DistributedSampler": distributed,
}
WITH_WORKERS = {
    "workers": lambda: torch_loader(Noisy(), shuffle=True, num_workers=2),
    "workers, own generator": lambda: torch_loader(
        Noisy(), shuffle=True, num_workers=2, generator=rng()
    ),
    "persistent workers": lambda: torch_loader(
        shuffle=True, num_workers=2, persistent_workers=True
    ),
}
STOPS = [0, 1, 2, 3, 4, 6, 7]


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def train(batches, count):
    """Batches, and the random numbers that a training takes after each of them."""
    return [(next(batches).clone(), torch.rand(2)) for _ in range(count)]


def assert_same(steps, expected):
    assert len(steps) == len(expected) > 0
    for step, other in zip(steps, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(step, other, strict=True))


def assert_resumes(build, stop, more=3 * EPOCH):
    torch.manual_seed(1)
    batches = Batches(build())
    before = train(batches, stop)
    saved = through_a_file({"batches": batches.state_dict(), "random": torch.get_rng_state()})
    expected = train(batches, more)

    torch.manual_seed(1)
    assert_same(train(Batches(build()), stop + more), before + expected)  # saving changes nothing

    for random_first in (True, False):
        torch.manual_seed(2)
        resumed = Batches(build())
        if random_first:
            torch.set_rng_state(saved["random"])
        resumed.load_state_dict(saved["batches"])
        if not random_first:
            torch.set_rng_state(saved["random"])
        assert_same(train(resumed, more), expected)


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("name", LOADERS)
def test_resumed_batches_and_random_numbers_are_those_of_one_run(name, stop):
    assert_resumes(LOADERS[name], stop)


@pytest.mark.parametrize("stop", [1, 3, 4])
@pytest.mark.parametrize("name", WITH_WORKERS)
def test_resumed_workers_go_on_as_in_one_run(name, stop):
    assert_resumes(WITH_WORKERS[name], stop, more=2 * EPOCH)


@pytest.mark.parametrize("name", [name for name in LOADERS if name != "iterator"])
def test_batches_go_back_in_the_process_that_saved_them(name):
    batches = Batches(LOADERS[name]())
    train(batches, 4)
    state, random = batches.state_dict(), torch.get_rng_state()
    expected = train(batches, 5)
    batches.load_state_dict(state)
    torch.set_rng_state(random)
    assert_same(train(batches, 5), expected)


def test_a_resumed_run_that_stops_again_resumes_too():
    build = LOADERS["own generator"]
    batches = Batches(build())
    expected = [next(batches) for _ in range(9)]
    state = Batches(build()).state_dict()
    for x in expected:
        resumed = Batches(build())
        resumed.load_state_dict(state)
        assert torch.equal(next(resumed), x)
        state = resumed.state_dict()


@pytest.mark.parametrize("name", ["list", "shuffle", "own generator", "DistributedSampler"])
def test_every_epoch_has_the_loader_s_batches(name):
    batches, seen = Batches(LOADERS[name]()), []
    size = 2 if name == "DistributedSampler" else EPOCH  # its half of the data and one more
    for _ in range(3):
        rows = torch.cat([next(batches) for _ in range(size)])[:, 0]
        assert len(rows.unique()) == len(rows) == (6 if size == 2 else 11)
        seen.append(rows.tolist())
    assert (seen[0] == seen[1] == seen[2]) == (name == "list")


def test_a_distributed_sampler_is_told_the_number_of_the_epoch():
    batches, by_hand = Batches(distributed(seed=3)), []
    sampler = DistributedSampler(DATA, num_replicas=2, rank=1, seed=3)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        by_hand += DATA[list(sampler)].split(4)
    assert all(torch.equal(next(batches), x) for x in by_hand)


def test_a_loader_used_before_resumes_where_it_was():
    # Its generator has moved on, which a fresh loader's has not.
    loader = LOADERS["own generator"]()
    train(Batches(loader), 5)
    batches = Batches(loader)
    state = batches.state_dict()
    expected = train(batches, 6)
    resumed = Batches(LOADERS["own generator"]())
    resumed.load_state_dict(state)
    assert [a.tolist() for a, _ in train(resumed, 6)] == [a.tolist() for a, _ in expected]


def test_labels_are_left_out():
    batches = Batches([[torch.ones(2), "label"], (torch.zeros(2),)])
    assert next(batches).tolist() == [1, 1] and next(batches).tolist() == [0, 0]


def state_of(loader, taken):
    batches = Batches(loader)
    train(batches, taken)
    return batches.state_dict()


def load_used(loader):
    batches = Batches(loader)
    train(batches, 1)
    batches.load_state_dict(batches.state_dict())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: next(Batches([])), "loader: .*at least one batch; got none"),
        (lambda: train(Batches(iter(DATA)), 12), "a used-up iterator"),
        (lambda: next(Batches(["text"])), "loader: .*tensors.* got str"),
        (lambda: next(Batches([[]])), "loader: .*got list"),
        (
            lambda: Batches(list(DATA)).load_state_dict(state_of(Saving(), 2)),
            "state: .*0 random generators instead of 1",
        ),
        (
            lambda: Batches(torch_loader()).load_state_dict(
                state_of(torch_loader(shuffle=True, generator=rng()), 2)
            ),
            "state: .*2 random generators instead of 1",
        ),
        (
            lambda: Batches(DATA[:3].split(1)).load_state_dict(state_of(DATA.split(1), 7)),
            "loader: expected 7 batches or more.*; got 3",
        ),
        (lambda: load_used(iter(DATA)), "loader: expected a fresh iterator"),
    ],
)
def test_refusals_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
