"""Spectral normalisation against singular values, and in everything that uses an energy."""

import copy

import pytest
import torch
from helpers import draws_of, quiet_sample, stats_of
from pyro import poutine
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.parametrizations import weight_norm

import pyro_gebm as pg
from pyro_gebm.nets import MLPEnergy, MLPGenerator, NetworkSpec, build, with_spectral_norm

STEEPEST = {"tanh": 1.0, "softplus": 1.0, "leaky_relu": 1.0, "silu": 1.1, "gelu": 1.13}


def converge(network, shape, steps=300):
    """As many power iterations, then eval mode."""
    network.train()
    for _ in range(steps):
        network(torch.zeros(1, *shape, dtype=torch.float64))
    return network.eval()


def largest_singular_values(network):
    """Of every weight as a matrix with one row per output channel."""
    values = []
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            transposed = isinstance(layer, nn.ConvTranspose2d)
            weight = layer.weight.detach().transpose(0, 1) if transposed else layer.weight.detach()
            values.append(torch.linalg.matrix_norm(weight.flatten(1), ord=2).item())
    return values


def slopes(energy, x):
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(energy(x).sum(), x)
    return gradient.flatten(1).norm(dim=1)


def energy_of(hidden=(16, 16), activation="silu", **options):
    return MLPEnergy((2, 3), hidden, activation, spectral_norm=True, **options).double()


def normalised_gebm():
    base = pg.Base(MLPGenerator(2, (3,), hidden=(8,)), pg.StandardNormal(2))
    gebm = pg.GEBM(base, MLPEnergy((3,), hidden=(8, 8), spectral_norm=True))
    gebm.energy(torch.randn(4, 3))  # a pass in train mode moves the buffers
    return gebm.eval()


# --- the norms ------------------------------------------


@pytest.mark.parametrize("hidden", [(), (16,), (16, 8)])
def test_every_layer_of_an_energy_has_norm_one(hidden):
    values = largest_singular_values(converge(energy_of(hidden), (2, 3)))
    assert len(values) == len(hidden) + 1
    assert values == pytest.approx([1.0] * len(values), abs=1e-3)


def test_convolutions_have_norm_one_as_matrices_and_keep_their_stated_bound():
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ConvTranspose2d(4, 3, 3, stride=2),
        nn.Flatten(),
        nn.Linear(3 * 9 * 9, 5),
    ).double()
    converge(with_spectral_norm(network), (2, 4, 4))
    assert largest_singular_values(network) == pytest.approx([1.0] * 3, abs=1e-3)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(network[0], x).reshape(4 * 16, 2 * 16)
    assert 1 < torch.linalg.matrix_norm(jacobian, ord=2) <= 3


@pytest.mark.parametrize("activation", STEEPEST)
def test_the_slope_of_an_energy_is_bounded(activation):
    energy = energy_of((32, 32), activation)
    with torch.no_grad():
        for parameter in energy.parameters():
            parameter.mul_(20)  # without the norms the slope would be 8000 times as large
    converge(energy, (2, 3))
    x = 3 * torch.randn(500, 2, 3, dtype=torch.float64)
    steepest = slopes(energy, x).max().item()
    assert 0.01 < steepest <= STEEPEST[activation] ** 2 * 1.001**3


def test_the_slope_of_a_linear_energy_is_one():
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    found = slopes(converge(energy_of(()), (2, 3)), x)
    torch.testing.assert_close(found, torch.ones(5, dtype=torch.float64))


def test_the_norms_hold_while_training():
    energy = energy_of()
    optimizer = torch.optim.Adam(energy.parameters(), lr=1e-2)
    x = torch.randn(64, 2, 3, dtype=torch.float64)
    first = energy.layers[0].weight.detach()
    for _ in range(200):
        optimizer.zero_grad()
        (energy(x).mean() - energy(x + 1).mean()).backward()
        optimizer.step()
    assert (energy.layers[0].weight - first).norm() > 0.5  # it did move
    # One power iteration a pass lags behind the weights, by about a step of them.
    assert largest_singular_values(energy.eval()) == pytest.approx([1.0] * 3, abs=0.02)


# --- modes, files, transforms ------------------------------------------


def test_eval_mode_changes_no_buffer_and_train_mode_does():
    energy = energy_of()
    x = torch.randn(4, 2, 3, dtype=torch.float64)

    def moved_by_a_pass():
        before = copy.deepcopy(energy.state_dict())
        energy(x)
        return [
            name for name, value in energy.state_dict().items() if (value != before[name]).any()
        ]

    assert energy.eval() is energy and moved_by_a_pass() == []
    energy.train()
    moved = moved_by_a_pass()
    assert {name.rsplit(".", 1)[1] for name in moved} == {"_u", "_v"}
    assert {name.split(".")[1] for name in moved} == {"0", "2", "4"}


def test_the_option_leaves_the_initial_weights_alone():
    torch.manual_seed(3)
    plain = MLPEnergy((2,), hidden=(4,))
    torch.manual_seed(3)
    normalised = MLPEnergy((2,), hidden=(4,), spectral_norm=True)
    originals = dict(normalised.named_parameters())
    for name, parameter in plain.named_parameters():
        original = originals[name.replace("weight", "parametrizations.weight.original")]
        assert torch.equal(parameter, original)


def test_a_saved_model_keeps_its_energies(tmp_path):
    gebm, x = normalised_gebm(), torch.randn(5, 3)
    pg.save(gebm, tmp_path / "gebm.pt")
    loaded = pg.load(tmp_path / "gebm.pt")
    assert torch.equal(loaded.energy(x), gebm.energy(x))
    assert loaded.energy.spec.options["spectral_norm"] is True


def test_files_and_specs_without_the_option_still_load(tmp_path):
    gebm = normalised_gebm()
    gebm.energy = MLPEnergy((3,), hidden=(4,))
    del gebm.energy.spec.options["spectral_norm"]
    pg.save(gebm, tmp_path / "old.pt")
    loaded, x = pg.load(tmp_path / "old.pt"), torch.randn(5, 3)
    assert torch.equal(loaded.energy(x), gebm.energy(x))
    energy = build(NetworkSpec("mlp_energy", {"data_shape": [3], "hidden": [4]}))
    assert set(energy.state_dict()) == set(gebm.energy.state_dict())


def test_a_network_normalised_afterwards_is_handed_to_load(tmp_path):
    gebm = normalised_gebm()
    gebm.energy = with_spectral_norm(MLPEnergy((3,), hidden=(4,)))
    pg.save(gebm.eval(), tmp_path / "gebm.pt")
    with pytest.raises(ValueError, match="do not fit"):
        pg.load(tmp_path / "gebm.pt")
    fresh = with_spectral_norm(MLPEnergy((3,), hidden=(4,)))
    loaded, x = pg.load(tmp_path / "gebm.pt", energy=fresh), torch.randn(5, 3)
    assert torch.equal(loaded.energy(x), gebm.energy(x))


def test_functional_call_under_vmap_agrees_with_the_batch():
    gebm, z = normalised_gebm(), torch.randn(6, 2)
    state = {name: p.detach() for name, p in gebm.named_parameters()}

    def one(row):
        return functional_call(gebm, state, (row,))[1]

    torch.testing.assert_close(vmap(one)(z), gebm(z)[1])
    leaf = z.clone().requires_grad_()
    (batched,) = torch.autograd.grad(gebm(leaf)[1].sum(), leaf)
    torch.testing.assert_close(vmap(grad(one))(z), batched)


def test_the_pyro_model_has_the_density_of_the_potential():
    gebm = normalised_gebm().train()  # the model itself goes to eval mode
    buffers = copy.deepcopy(gebm.state_dict())
    trace = poutine.trace(gebm.model).get_trace()
    z = trace.nodes["z"]["value"]
    potential = gebm.eval().potential_fn(z)
    torch.testing.assert_close(trace.log_prob_sum(), -potential)
    assert all(torch.equal(value, buffers[name]) for name, value in gebm.state_dict().items())


@pytest.mark.parametrize("as_pyro_model", [False, True])
def test_draws_are_from_the_potential_of_the_model(as_pyro_model):
    gebm = normalised_gebm().train()
    buffers = copy.deepcopy(gebm.state_dict())
    idata = quiet_sample(
        gebm.model if as_pyro_model else gebm,
        kernel="HMC",
        num_samples=10,
        warmup_steps=20,
        num_chains=4,
    )
    z = torch.as_tensor(draws_of(idata), dtype=torch.float32)
    assert len(z.reshape(-1, 2).unique(dim=0)) > 20
    assert all(torch.equal(value, buffers[name]) for name, value in gebm.state_dict().items())
    potential = gebm.eval().potential_fn(z).detach()
    lp = torch.as_tensor(stats_of(idata, "lp"), dtype=torch.float32)
    torch.testing.assert_close(lp, -potential, rtol=1e-5, atol=1e-5)


# --- refusals ------------------------------------------


def test_the_module_given_is_returned_and_others_are_left_alone():
    network = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    kept = network[1].weight
    assert with_spectral_norm(network) is network
    assert network[1].weight is kept


def zeroed(layer):
    nn.init.zeros_(layer.weight)
    return layer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.LayerNorm(3), nn.Tanh()), "module: .*Sequential without any"),
        (lambda: with_spectral_norm(nn.Linear(2, 2)), "module: .*Linear is parametrised"),
        (
            lambda: nn.Sequential(nn.Linear(2, 2), with_spectral_norm(nn.Linear(2, 2))),
            "module: .*that of 1 is parametrised already",
        ),
        (
            lambda: nn.Sequential(nn.Linear(2, 2), nn.utils.spectral_norm(nn.Conv1d(2, 2, 1))),
            "module: .*that of 1 is parametrised already",
        ),
        (
            lambda: nn.Sequential(nn.Linear(2, 2), weight_norm(nn.Linear(2, 2))),
            "module: .*that of 1 is parametrised already",
        ),
        (
            lambda: nn.Sequential(nn.Linear(2, 2), zeroed(nn.Linear(2, 2))),
            "those of 1 are all zero",
        ),
        (lambda: MLPEnergy((2,), spectral_norm="yes"), "spectral_norm: .*False, True.*'yes'"),
    ],
)
def test_refusals_say_what_came_and_change_nothing(make, message):
    built = None
    with pytest.raises(ValueError, match=message):
        built = make()
        before = set(built.state_dict())
        with_spectral_norm(built)
    assert built is None or set(built.state_dict()) == before
