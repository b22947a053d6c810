"""The presets: whole, plain, and trainable."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import pyro_gebm as pg
from pyro_gebm.data.images import ImageLoader
from pyro_gebm.nets import NetworkSpec
from pyro_gebm.presets import PRESETS, Preset, load_preset

NAMES = ["mnist-cpu", "fashion-cpu", "cifar10-sngan", "cifar10-resnet", "celeba-sngan"]
SHAPES = [(1, 28, 28), (1, 28, 28), (3, 32, 32), (3, 32, 32), (3, 64, 64)]

every = pytest.mark.parametrize("name", NAMES)


def test_the_names_are_promises():
    assert list(PRESETS) == NAMES
    assert all(preset.name == name for name, preset in PRESETS.items())
    with pytest.raises(ValueError, match=r"preset: .*mnist-cpu.*'imagenet'"):
        load_preset("imagenet")


@pytest.mark.parametrize(("name", "shape"), zip(NAMES, SHAPES, strict=True))
def test_networks_and_data_fit(name, shape):
    preset = load_preset(name)
    gebm = preset.build().eval()
    assert preset.data_shape == shape and preset.size == shape[1]
    assert gebm.latent_dim == preset.latent_dim
    with torch.no_grad():
        x = gebm.base.sample(2)
        assert x.shape == (2, *shape) and (x.abs() <= 1).all()
        assert gebm.evaluate_energy(x).shape == (2,)
        # No energy runs away, wherever its last layer would take it.
        layers = [part for part in gebm.energy.modules() if isinstance(part, nn.Linear)]
        layers[-1].bias.sub_(100)
        assert gebm.evaluate_energy(x).min() >= -10


@every
def test_it_survives_json(name):
    preset = load_preset(name)
    assert Preset.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset


def test_digits_are_not_mirrored_and_photographs_are():
    assert [load_preset(name).flip for name in NAMES] == [False, False, True, True, True]


def test_the_same_seed_builds_the_same_networks():
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(load_preset("mnist-cpu").build().state_dict())
    first = "base.generator.layers.0.weight"
    assert torch.equal(states[0][first], states[1][first])
    assert not torch.equal(states[0][first], states[2][first])


@pytest.mark.parametrize("name", ["mnist-cpu", "cifar10-sngan"])
def test_a_few_steps_of_its_training(name):
    preset = load_preset(name)
    narrow = [
        NetworkSpec(spec.name, {**spec.options, "width": 8})
        for spec in (preset.generator, preset.energy)
    ]
    preset = replace(preset, generator=narrow[0], energy=narrow[1])
    few = {"base_steps": 2, "refit_steps": 1, "boost_steps": 1, "energy_steps": 1, "num_latents": 4}
    # bfloat16 takes minutes on a CPU.
    config = replace(preset.training, evaluation_samples=8, precision="float32", **few)
    pixels = torch.randint(256, (8, *preset.data_shape), dtype=torch.uint8)
    loader = ImageLoader(pixels, 4, generator=torch.Generator().manual_seed(0), flip=preset.flip)
    infos = list(pg.Trainer(preset.build(), config).fit(loader))
    assert len(infos) == 3 and all(info.bound.isfinite() for info in infos)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": "imagenet"}, "data: .*'imagenet'"),
        ({"size": 32}, r"data_shape: .*32.*\[1, 28, 28\]"),
        ({"held_out": 0}, "held_out"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"flip": 1.5}, "flip"),
        ({"energy": NetworkSpec("dcgan_energy", {"data_shape": [3, 28, 28]})}, "data_shape"),
        ({"energy": NetworkSpec("dcgan_energy", {})}, "data_shape"),
    ],
)
def test_refusals(change, words):
    with pytest.raises(ValueError, match=words):
        replace(load_preset("mnist-cpu"), **change)


def test_unknown_and_missing_settings_are_refused():
    plain = load_preset("mnist-cpu").to_dict()
    with pytest.raises(ValueError, match="preset: expected"):
        Preset.from_dict({**plain, "speed": 2})
    del plain["size"]
    with pytest.raises(ValueError, match="preset: expected"):
        Preset.from_dict(plain)
    plain = load_preset("mnist-cpu").to_dict()
    plain["training"]["base_lr"] = -1.0
    with pytest.raises(ValueError, match="base_lr"):
        Preset.from_dict(plain)
