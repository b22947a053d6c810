"""The contract of every registered network. A new network joins by one line in CASES."""

import json

import pytest
import torch
from torch.func import functional_call, grad, vmap

import pyro_gebm as pg
from pyro_gebm.nets import (
    MLPEnergy,
    MLPGenerator,
    NetworkSpec,
    build,
    import_network,
    register,
    registered_names,
    trust,
)

SMALL_IMAGES = {"data_shape": [1, 8, 8], "width": 2, "activation": "silu"}

# spec, shape of one input, shape of one output
CASES = [
    (
        NetworkSpec("mlp_generator", {"latent_dim": 3, "data_shape": [1, 2, 2], "hidden": [5, 4]}),
        (3,),
        (1, 2, 2),
    ),
    (
        NetworkSpec(
            "mlp_generator",
            {"latent_dim": 2, "data_shape": [3], "hidden": [], "output": "identity"},
        ),
        (2,),
        (3,),
    ),
    (
        NetworkSpec(
            "mlp_generator",
            {"latent_dim": 2, "data_shape": [2], "hidden": [6], "activation": "tanh"},
        ),
        (2,),
        (2,),
    ),
    (NetworkSpec("mlp_energy", {"data_shape": [2, 3], "hidden": [5, 4]}), (2, 3), ()),
    (NetworkSpec("mlp_energy", {"data_shape": [2], "activation": "softplus"}), (2,), ()),
    (NetworkSpec("mlp_energy", {"data_shape": [2], "activation": "gelu", "hidden": [7]}), (2,), ()),
    (
        NetworkSpec("mlp_energy", {"data_shape": [2, 3], "hidden": [5, 4], "spectral_norm": True}),
        (2, 3),
        (),
    ),
    (NetworkSpec("fourier_energy", {"data_shape": [2, 3], "num_features": 10}), (2, 3), ()),
    (
        NetworkSpec(
            "fourier_energy",
            {"data_shape": [2], "num_features": 6, "bandwidth": 0.5, "train_bandwidth": True},
        ),
        (2,),
        (),
    ),
    (NetworkSpec("nvp", {"dim": 3, "transforms": 3, "hidden": [5]}), (3,), (3,)),
    (NetworkSpec("nsf", {"dim": 3, "transforms": 3, "hidden": [5], "bins": 4}), (3,), (3,)),
    *(
        (NetworkSpec(f"{kind}_generator", {"latent_dim": 3, **SMALL_IMAGES}), (3,), (1, 8, 8))
        for kind in ("dcgan", "sngan", "resnet")
    ),
    *(
        (NetworkSpec(f"{kind}_energy", dict(SMALL_IMAGES)), (1, 8, 8), ())
        for kind in ("dcgan", "sngan", "resnet")
    ),
]


def inputs(shape, batch=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, *shape, generator=generator, dtype=dtype)


def make(spec, dtype=torch.float64):
    torch.manual_seed(0)
    return build(spec).to(dtype)


def label(case):
    spec = case[0]
    return "-".join([spec.name, *(str(v) for v in spec.options.values())])


contract = pytest.mark.parametrize(("spec", "given", "returned"), CASES, ids=map(label, CASES))


def test_every_registered_network_is_under_contract():
    assert {spec.name for spec, _, _ in CASES} == set(registered_names())


@contract
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [0, 1, 4])
def test_output_shape_and_dtype(spec, given, returned, dtype, batch):
    y = make(spec, dtype)(inputs(given, batch, dtype))
    assert y.shape == (batch, *returned)
    assert y.dtype == dtype


@contract
def test_spec_survives_json_and_rebuilds_the_architecture(spec, given, returned):
    network = make(spec).eval()
    read = NetworkSpec(*json.loads(json.dumps(network.spec)))
    assert read == network.spec
    twin = build(read).double().eval()
    twin.load_state_dict(network.state_dict(), strict=True)
    assert type(twin) is type(network)
    assert twin.spec == network.spec
    assert torch.equal(twin(inputs(given)), network(inputs(given)))


@contract
def test_every_option_given_is_in_the_spec(spec, given, returned):
    assert spec.options.items() <= build(spec).spec.options.items()


@contract
def test_every_parameter_gets_a_gradient(spec, given, returned):
    network = make(spec)
    y = network(inputs(given, batch=8))
    weights = inputs(returned, batch=8)  # unequal, so that symmetric outputs do not cancel
    (y * weights).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and (parameter.grad != 0).any(), name


@contract
def test_rows_do_not_interact_in_eval_mode(spec, given, returned):
    network = make(spec).eval()
    x = inputs(given)
    changed = x * 3 - 1
    changed[2] = x[2]
    assert torch.equal(network(changed)[2], network(x)[2])
    assert not torch.equal(network(changed)[1], network(x)[1])


@contract
def test_derivatives_in_the_input_agree_with_finite_differences(spec, given, returned):
    network = make(spec).eval()
    x = inputs(given).requires_grad_()
    assert torch.autograd.gradcheck(network, (x,))
    assert torch.autograd.gradgradcheck(network, (x,))  # the gradient penalty needs the second


@contract
def test_derivatives_in_the_parameters_agree_with_finite_differences(spec, given, returned):
    network = make(spec).eval()
    x, weights = inputs(given), inputs(returned)
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    generator = torch.Generator().manual_seed(2)
    direction = {
        name: torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for name, p in parameters.items()
    }

    def value(step):
        moved = {name: p + step * direction[name] for name, p in parameters.items()}
        return (functional_call(network, moved, (x,)) * weights).sum()

    slope = grad(value)(torch.tensor(0.0, dtype=torch.float64))
    difference = (value(1e-5) - value(-1e-5)) / 2e-5
    torch.testing.assert_close(slope, difference, rtol=1e-7, atol=1e-7)


@contract
def test_vmap_over_single_data_agrees_with_the_batch(spec, given, returned):
    network = make(spec).eval()
    x = inputs(given)
    torch.testing.assert_close(vmap(lambda row: network(row[None])[0])(x), network(x))
    per_row = vmap(grad(lambda row: network(row[None]).sum()))(x)
    leaf = x.clone().requires_grad_()
    (batched,) = torch.autograd.grad(network(leaf).sum(), leaf)
    torch.testing.assert_close(per_row, batched)


@contract
def test_a_wrong_shape_is_refused(spec, given, returned):
    network = make(spec)
    for shape in [given, (4, *given, 1), (4, given[0] + 1, *given[1:])]:
        with pytest.raises(ValueError, match=r"expected shape \(B, "):
            network(torch.zeros(shape, dtype=torch.float64))


# --- what the built-in networks compute ------------------------------------------

FORMULAS = {
    "silu": lambda t: t / (1 + (-t).exp()),
    "softplus": lambda t: (1 + t.exp()).log(),
    "leaky_relu": lambda t: torch.maximum(t, 0.2 * t),
    "gelu": lambda t: t * torch.special.ndtr(t),
    "tanh": lambda t: (t.exp() - (-t).exp()) / (t.exp() + (-t).exp()),
}


@pytest.mark.parametrize("activation", FORMULAS)
def test_energy_is_affine_activation_affine(activation):
    torch.manual_seed(0)
    network = MLPEnergy((2, 2), hidden=(3,), activation=activation).double()
    w1, b1, w2, b2 = network.parameters()
    x = inputs((2, 2))
    expected = FORMULAS[activation](x.reshape(4, 4) @ w1.T + b1) @ w2[0] + b2
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize(("output", "apply"), [("tanh", torch.tanh), ("identity", lambda t: t)])
def test_generator_without_hidden_layers_is_affine_then_output(output, apply):
    torch.manual_seed(0)
    network = MLPGenerator(3, (2, 2), hidden=(), output=output).double()
    weight, bias = network.parameters()
    z = inputs((3,))
    torch.testing.assert_close(network(z), apply(z @ weight.T + bias).reshape(4, 2, 2))


def test_hidden_layers_have_the_widths_asked_for():
    generator, energy = MLPGenerator(3, (2, 2), hidden=(5, 6)), MLPEnergy((2, 2), hidden=(5, 6))
    assert [tuple(p.shape) for p in generator.parameters() if p.ndim == 2] == [
        (5, 3),
        (6, 5),
        (4, 6),
    ]
    assert [tuple(p.shape) for p in energy.parameters() if p.ndim == 2] == [(5, 4), (6, 5), (1, 6)]


# --- the user's own, by import path ------------------------------------------

LINEAR = NetworkSpec("torch.nn:Linear", {"in_features": 3, "out_features": 1, "bias": False})


def test_an_imported_network_is_the_users_module_under_a_name():
    network = import_network(LINEAR.name, **LINEAR.options).double()
    assert network.spec == LINEAR and isinstance(network.module, torch.nn.Linear)
    x = inputs((3,))
    assert torch.equal(network(x), x @ network.module.weight.T)
    with trust(LINEAR.name):
        twin = build(NetworkSpec(*json.loads(json.dumps(network.spec)))).double()
    twin.load_state_dict(network.state_dict())
    assert torch.equal(twin(x), network(x))


def test_a_checkpoint_names_an_imported_network_and_does_not_import_it(tmp_path):
    energy = import_network(LINEAR.name, **LINEAR.options)
    gebm = pg.GEBM(pg.Base(MLPGenerator(2, (3,)), pg.StandardNormal(2)), energy).eval()
    pg.save(gebm, tmp_path / "gebm.pt")
    with pytest.raises(ValueError, match=r"torch.nn:Linear: not imported.*--trust torch.nn:Lin"):
        pg.load(tmp_path / "gebm.pt")
    with trust("torch.nn:Conv2d"), pytest.raises(ValueError, match="not imported"):
        pg.load(tmp_path / "gebm.pt")
    with trust("torch.nn:Conv2d", LINEAR.name):
        again = pg.load(tmp_path / "gebm.pt")
    z = torch.randn(5, 2)
    assert torch.equal(again.potential_fn(z), gebm.potential_fn(z))
    assert again.energy.spec == LINEAR


def test_trust_ends_with_its_block_even_after_an_error():
    with pytest.raises(RuntimeError), trust(LINEAR.name), trust("torch.nn:Conv2d"):
        build(LINEAR)  # the outer block's is still trusted
        raise RuntimeError
    with pytest.raises(ValueError, match="not imported"):
        build(LINEAR)


def test_a_module_is_not_imported_to_be_refused(tmp_path, monkeypatch):
    (tmp_path / "side_effects.py").write_text("raise SystemExit('this ran')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="side_effects:Net: not imported"):
        build(NetworkSpec("side_effects:Net", {}))


def test_nested_names_are_found():
    assert type(import_network("torch:nn.ReLU").module) is torch.nn.ReLU
    with pytest.raises(ValueError, match=r"torch:nn\.Nothing: torch has no nn\.Nothing"):
        import_network("torch:nn.Nothing")


# --- refusals ------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MLPGenerator(0, (2,)), "latent_dim: .*got 0"),
        (lambda: MLPGenerator(2, ()), r"data_shape: .*got \[\]"),
        (lambda: MLPGenerator(2, (2,), activation="relu6"), "activation: .*silu.*'relu6'"),
        (lambda: MLPGenerator(2, (2,), output="sigmoid"), "output: .*tanh.*'sigmoid'"),
        (lambda: MLPEnergy((2, -1)), r"data_shape: .*-1"),
        (lambda: MLPEnergy((2,), hidden=(8, 0)), r"hidden: .*\[8, 0\]"),
        (lambda: MLPEnergy((2,), activation="none"), "activation: .*'none'"),
        (lambda: build(NetworkSpec("unet", {})), "mlp_energy, mlp_generator.*'unet'"),
        (lambda: build(NetworkSpec("mlp_energy", {"width": 3})), "mlp_energy: .*width"),
        (lambda: build(NetworkSpec("mlp_energy", {})), "mlp_energy: .*data_shape"),
        (lambda: register("mlp_energy"), "mlp_energy.*taken"),
        (lambda: register("my:energy"), "looks like an import path"),
        (lambda: import_network("torch.nn"), "torch.nn: expected an import path"),
        (lambda: import_network("torch nn:Linear"), "expected an import path"),
        (lambda: import_network("../torch:Linear"), "expected an import path"),
        (lambda: import_network("torch.nothing:Net"), "there is no module torch.nothing"),
        (lambda: import_network("torch.nn:Nothing"), "torch.nn has no Nothing"),
        (lambda: import_network("torch.nn:functional"), "torch.nn.Module; got module"),
        (lambda: import_network("os:system"), "torch.nn.Module; got builtin_function"),
        (lambda: import_network("pathlib:Path"), "torch.nn.Module; got the class Path"),
        (lambda: import_network("torch.nn:Linear", width=3), "torch.nn:Linear: .*in_features.*wid"),
        (
            lambda: import_network("torch.nn:Linear", in_features=-1, out_features=2),
            r"torch.nn:Linear: cannot be built with .*RuntimeError",
        ),
        (lambda: trust("mlp_energy").__enter__(), "mlp_energy: expected an import path"),
    ],
)
def test_refusals_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
