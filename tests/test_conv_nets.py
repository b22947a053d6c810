"""The contract of the convolutional networks, and that they are the sizes they claim to be."""

import copy
import itertools
import json

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import pyro_gebm as pg
from pyro_gebm.nets import (
    DCGANEnergy,
    DCGANGenerator,
    NetworkSpec,
    ResNetEnergy,
    ResNetGenerator,
    SNGANEnergy,
    SNGANGenerator,
    build,
)
from pyro_gebm.nets.conv_parts import NORMS, SoftFloor, pyramid, widths

GENERATORS = ("dcgan_generator", "sngan_generator", "resnet_generator")
ENERGIES = ("dcgan_energy", "sngan_energy", "resnet_energy")
SHAPES = ([1, 28, 28], [3, 32, 32], [3, 64, 64])
D = 5


def generator_spec(name, shape, **options):
    return NetworkSpec(name, {"latent_dim": D, "data_shape": shape, "width": 4, **options})


def energy_spec(name, shape, **options):
    return NetworkSpec(name, {"data_shape": shape, "width": 4, **options})


CASES = [
    *((generator_spec(name, shape), (D,), tuple(shape))
      for name, shape in itertools.product(GENERATORS, SHAPES)),
    *((energy_spec(name, shape, floor=10.0, spectral_norm=True), tuple(shape), ())
      for name, shape in itertools.product(ENERGIES, SHAPES)),
    *((generator_spec(name, [2, 8, 8], norm=norm, activation="silu", output="identity"),
       (D,), (2, 8, 8)) for name, norm in itertools.product(GENERATORS, NORMS)),
    *((energy_spec(name, [2, 8, 8], activation="silu", spectral_norm=False), (2, 8, 8), ())
      for name in ENERGIES),
    (generator_spec("dcgan_generator", [1, 12, 12], hidden=6), (D,), (1, 12, 12)),
    (energy_spec("dcgan_energy", [2, 8, 8], activation="silu", hidden=6), (2, 8, 8), ()),
]  # fmt: skip
SMALL = [case for case in CASES if 8 in (*case[1], *case[2])]


def label(case):
    return "-".join([case[0].name, *(str(v) for v in case[0].options.values())])


contract = pytest.mark.parametrize(("spec", "given", "returned"), CASES, ids=map(label, CASES))
small = pytest.mark.parametrize(("spec", "given", "returned"), SMALL, ids=map(label, SMALL))


def inputs(shape, batch=4, dtype=torch.float32, seed=1):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *shape, generator=source, dtype=dtype)


def make(spec, dtype=torch.float32):
    """A network that has seen a few batches, so that its running figures are not the initial."""
    torch.manual_seed(0)
    network = build(spec).to(dtype)
    shape = (D,) if "latent_dim" in spec.options else tuple(spec.options["data_shape"])
    for seed in range(5):
        network(inputs(shape, 8, dtype, seed))
    return network


# --- the contract ------------------------------------------


@contract
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_output_shape(spec, given, returned, batch):
    network = make(spec).eval()
    y = network(inputs(given, batch))
    assert y.shape == (batch, *returned) and y.dtype == torch.float32
    if spec.options.get("output", "tanh") == "tanh" and returned:
        assert (y.abs() <= 1).all()


@contract
def test_spec_survives_json_and_rebuilds_the_network(spec, given, returned):
    network = make(spec).eval()
    read = NetworkSpec(*json.loads(json.dumps(network.spec)))
    assert read == network.spec and spec.options.items() <= read.options.items()
    twin = build(read)
    twin.load_state_dict(network.state_dict(), strict=True)
    assert twin.spec == network.spec
    assert torch.equal(twin.eval()(inputs(given)), network(inputs(given)))


@contract
def test_every_parameter_gets_a_gradient(spec, given, returned):
    network = make(spec)
    y = network(inputs(given, 8))
    (y * inputs(returned, 8, seed=2)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and (parameter.grad != 0).any(), name


@contract
def test_rows_do_not_interact_in_eval_mode(spec, given, returned):
    network = make(spec, torch.float64).eval()
    x = inputs(given, dtype=torch.float64)
    changed = x * 3 - 1
    changed[2] = x[2]
    torch.testing.assert_close(network(changed)[2], network(x)[2], rtol=1e-12, atol=1e-12)
    assert not torch.equal(network(changed)[1], network(x)[1])
    torch.testing.assert_close(network(x[2:3])[0], network(x)[2], rtol=1e-12, atol=1e-12)


uncoupled = [case for case in CASES if case[0].options.get("norm", "batch") != "batch"]
uncoupled += [case for case in CASES if case[0].name in ENERGIES]


@pytest.mark.parametrize("spec", [case[0] for case in uncoupled], ids=map(label, uncoupled))
def test_only_batch_norm_couples_rows_in_train_mode(spec):
    network = make(spec, torch.float64)
    given = (D,) if "latent_dim" in spec.options else tuple(spec.options["data_shape"])
    x = inputs(given, dtype=torch.float64)
    changed = torch.cat([x[:1], 5 * x[1:]])
    # Spectral norm moves a little at each pass in train mode: compare one pass from one state.
    twin = copy.deepcopy(network)
    torch.testing.assert_close(network(x)[0], twin(changed)[0], rtol=1e-12, atol=1e-12)


@contract
def test_autocast_stays_near_full_precision(spec, given, returned):
    network = make(spec).eval()
    x = inputs(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = network(x)
    full = network(x)
    assert low.isfinite().all() and low.shape == full.shape
    # bfloat16 has 8 bits: some layers of rounding, relative to the spread of the outputs.
    assert (low.float() - full).abs().max() < 0.1 * max(1.0, full.abs().max().item())


@contract
def test_channels_last_is_the_same_network_in_that_format(spec, given, returned):
    network = make(spec, torch.float64).eval()
    x = inputs(given, dtype=torch.float64)
    expected = network(x)
    network.to(memory_format=torch.channels_last)
    if len(given) == 3:
        x = x.to(memory_format=torch.channels_last)
    seen = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(lambda _, __, y: seen.append(y))
    y = network(x)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    assert all(h.is_contiguous(memory_format=torch.channels_last) for h in seen if h.shape[1] > 1)
    assert seen


@contract
def test_a_running_average_samples_like_the_network(spec, given, returned):
    network = make(spec).eval()
    average = torch.optim.swa_utils.AveragedModel(network, use_buffers=True)
    average.update_parameters(network)
    average.update_parameters(network)
    torch.testing.assert_close(average.eval()(inputs(given)), network(inputs(given)))


@small
def test_derivatives_in_the_input_agree_with_finite_differences(spec, given, returned):
    network = make(spec, torch.float64).eval()
    x = inputs(given, 2, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(network, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(network, (x,), fast_mode=True)


@small
def test_vmap_over_single_data_agrees_with_the_batch(spec, given, returned):
    network = make(spec, torch.float64).eval()
    x = inputs(given, dtype=torch.float64)
    torch.testing.assert_close(vmap(lambda row: network(row[None])[0])(x), network(x))
    per_row = vmap(grad(lambda row: network(row[None]).sum()))(x)
    leaf = x.clone().requires_grad_()
    (batched,) = torch.autograd.grad(network(leaf).sum(), leaf)
    torch.testing.assert_close(per_row, batched)


@small
def test_functional_call_moves_the_parameters(spec, given, returned):
    network = make(spec, torch.float64).eval()
    zeroed = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    if spec.options.get("spectral_norm"):
        pytest.skip("0/0 is no weight")
    y = functional_call(network, zeroed, (inputs(given, dtype=torch.float64),))
    assert torch.equal(y, torch.zeros_like(y))


@contract
def test_a_wrong_shape_is_refused(spec, given, returned):
    network = build(spec)
    for shape in [given, (4, *given, 1), (4, given[0] + 1, *given[1:])]:
        with pytest.raises(ValueError, match=r"expected shape \(B, "):
            network(torch.zeros(shape))


# --- sizes and forms ------------------------------------------


@pytest.mark.parametrize(
    ("network", "millions"),
    [
        (lambda: SNGANGenerator(100, (3, 32, 32)), 3.58),
        (lambda: SNGANEnergy((3, 32, 32)), 5.86),
        (lambda: ResNetGenerator(100, (3, 32, 32)), 1.10),
        (lambda: ResNetEnergy((3, 32, 32)), 1.05),
    ],
)
def test_sizes_are_those_of_the_paper(network, millions):
    assert round(sum(p.numel() for p in network().parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("side", "expected"), [(28, (7, 2)), (32, (4, 3)), (64, (4, 4)), (8, (4, 1)), (48, (6, 3))]
)
def test_pyramids(side, expected):
    assert pyramid([3, side, side]) == (3, *expected)
    assert widths(2, 5) == [2, 4, 8, 16, 16, 16]


def test_dcgan_generator_is_its_formula():
    torch.manual_seed(0)
    network = DCGANGenerator(D, (1, 8, 8), width=3, norm="none", activation="tanh").double()
    linear, up = network.layers[0], network.layers[-2]
    z = inputs((D,), dtype=torch.float64)
    hidden = torch.tanh(z @ linear.weight.T + linear.bias).reshape(-1, 3, 4, 4)
    expected = torch.tanh(F.conv_transpose2d(hidden, up.weight, up.bias, stride=2, padding=1))
    torch.testing.assert_close(network(z), expected)


def test_a_hidden_layer_of_dcgan_is_affine_activation_affine():
    torch.manual_seed(0)
    energy = DCGANEnergy((1, 8, 8), width=3, activation="tanh", hidden=5).double()
    conv, _, _, first, _, last = energy.layers
    x = inputs((1, 8, 8), dtype=torch.float64)
    h = torch.tanh(F.conv2d(x, conv.weight, conv.bias, stride=2, padding=1)).flatten(1)
    expected = torch.tanh(h @ first.weight.T + first.bias) @ last.weight[0] + last.bias
    torch.testing.assert_close(energy(x), expected)


def test_residual_blocks_add_a_bypass():
    torch.manual_seed(0)
    energy = ResNetEnergy((3, 8, 8), width=4, spectral_norm=False).double()
    first = energy.layers[0]
    x = inputs((3, 8, 8), dtype=torch.float64)
    conv = first.bypass[1]
    bypass = F.conv2d(F.avg_pool2d(x, 2), conv.weight, conv.bias)
    with torch.no_grad():
        first.path[2].weight.zero_(), first.path[2].bias.zero_()
    torch.testing.assert_close(first(x), bypass)
    up = ResNetGenerator(D, (1, 8, 8), width=4).double().layers[2]
    with torch.no_grad():
        up.path[-1].weight.zero_(), up.path[-1].bias.zero_()
    h = inputs((4, 4, 4), dtype=torch.float64)
    torch.testing.assert_close(up(h), h.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize("name", ENERGIES)
def test_spectral_norm_is_one_at_most(name):
    energy = build(energy_spec(name, [1, 8, 8], spectral_norm=True)).double()
    for _ in range(200):
        energy(torch.zeros(1, 1, 8, 8, dtype=torch.float64))
    layers = [m for m in energy.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    norms = [torch.linalg.matrix_norm(m.weight.detach().flatten(1), ord=2) for m in layers]
    assert len(norms) >= 2
    assert all(0.99 < norm <= 1 + 1e-6 for norm in norms)


@pytest.mark.parametrize(("kind", "default"), [(SNGANEnergy, True), (DCGANEnergy, False)])
def test_spectral_norm_is_an_option(kind, default):
    names = [name for name, _ in kind((1, 8, 8), width=2).named_modules()]
    assert any("parametrizations" in name for name in names) == default


def test_the_floor_is_softplus():
    raw = torch.tensor([[-50.0], [-10.0], [0.0], [30.0]], dtype=torch.float64)
    bounded = SoftFloor(10.0)(raw)
    expected = (1 + (raw.squeeze(1) + 10).exp()).log() - 10
    torch.testing.assert_close(bounded, expected)
    assert (bounded > -10).all() or bounded.min() == -10
    torch.testing.assert_close(bounded[2:], raw.squeeze(1)[2:], rtol=0, atol=5e-5)
    assert torch.equal(SoftFloor(0.0)(raw), raw.squeeze(1))


@pytest.mark.parametrize("name", ENERGIES)
def test_a_floored_energy_stays_above_it(name):
    free, floored = (build(energy_spec(name, [1, 8, 8], floor=f)).eval() for f in (0.0, 3.0))
    with torch.no_grad():  # all of them far below
        free.layers[-1].bias.sub_(free(inputs((1, 8, 8), 64)).max() + 20)
    floored.load_state_dict(free.state_dict())
    x = inputs((1, 8, 8), 64)
    assert free(x).max() < -3 <= floored(x).min()


def test_a_checkpoint_rebuilds_the_networks(tmp_path):
    base = pg.Base(SNGANGenerator(D, (1, 8, 8), width=2), pg.StandardNormal(D))
    gebm = pg.GEBM(base, ResNetEnergy((1, 8, 8), width=4, floor=10.0))
    for seed in range(3):
        gebm.energy(gebm.base.generator(inputs((D,), 8, seed=seed)))
    gebm.eval()
    pg.save(gebm, tmp_path / "gebm.pt")
    again = pg.load(tmp_path / "gebm.pt")
    z = inputs((D,))
    assert torch.equal(again.latent_energy(z), gebm.latent_energy(z))


@pytest.mark.parametrize("options", [{}, {"precision": "bfloat16", "channels_last": True}])
@pytest.mark.parametrize("kind", ["dcgan", "sngan", "resnet"])
def test_they_train(kind, options):
    torch.manual_seed(0)
    generator = build(generator_spec(f"{kind}_generator", [1, 8, 8]))
    energy = build(energy_spec(f"{kind}_energy", [1, 8, 8], floor=10.0))
    gebm = pg.GEBM(pg.Base(generator, pg.StandardNormal(D)), energy)
    config = pg.TrainConfig(base_steps=3, refit_steps=2, num_latents=8, **options)
    before = copy.deepcopy(gebm.state_dict())
    infos = list(pg.Trainer(gebm, config).fit([inputs((1, 8, 8), 8).tanh()]))
    assert all(info.bound.isfinite() for info in infos) and len(infos) == 5
    assert any(not torch.equal(before[name], value) for name, value in gebm.state_dict().items())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DCGANGenerator(0, (1, 28, 28)), "latent_dim: .*got 0"),
        (lambda: DCGANGenerator(4, (1, 28)), r"data_shape: .*\(1, 28\)"),
        (lambda: DCGANGenerator(4, (1, 28, 32)), r"data_shape: .*square.*\(1, 28, 32\)"),
        (lambda: SNGANGenerator(4, (3, 30, 30)), "data_shape: .*28, 32 or 64; got 30"),
        (lambda: SNGANGenerator(4, (3, 7, 7)), "data_shape: .*got 7"),
        (lambda: ResNetGenerator(4, (3, 32, 32), norm="layer"), "norm: .*batch.*'layer'"),
        (lambda: ResNetGenerator(4, (3, 32, 32), output="sigmoid"), "output: .*'sigmoid'"),
        (lambda: SNGANEnergy((3, 32, 32), activation="prelu"), "activation: .*'prelu'"),
        (lambda: ResNetEnergy((3, 32, 32), floor=-1.0), "floor: .*got -1.0"),
        (lambda: DCGANEnergy((3, 32, 32), width=0), "width: .*got 0"),
        (lambda: DCGANEnergy((3, 32, 32), spectral_norm="yes"), "spectral_norm: .*'yes'"),
    ],
)
def test_refusals_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
