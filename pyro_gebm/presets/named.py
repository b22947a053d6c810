"""The presets that come with the package."""

from dataclasses import replace

from pyro_gebm._checks import check_choice
from pyro_gebm.nets import NetworkSpec
from pyro_gebm.presets.preset import Preset
from pyro_gebm.training import TrainConfig

_GREY, _COLOUR, _FACES = [1, 28, 28], [3, 32, 32], [3, 64, 64]
_FLOOR = 10.0
"""Of the energies, in nats; the authors' code has it as max(E, -10)."""

_ON_CPU = TrainConfig(
    base_steps=800,
    energy_steps=2,
    # Without a lead the energy's first gradients teach the base nothing.
    boost_steps=20,
    num_latents=64,
    energy_lr=1e-3,
    base_lr=5e-4,
    log_partition_update="closed_form",
    log_partition_memory=0.9,
    gradient_penalty=2.0,
    gradient_penalty_end=0.5,
    ema_decay=0.995,
    refit_steps=2000,
    refit_lr=3e-4,
    refit_gradient_penalty=0.1,
    evaluate_every=100,
    evaluation_samples=2048,
)

_MNIST = Preset(
    name="mnist-cpu",
    data="mnist",
    size=28,
    flip=False,
    held_out=5000,
    batch_size=64,
    generator=NetworkSpec(
        "dcgan_generator",
        {
            "latent_dim": 32,
            "data_shape": _GREY,
            "width": 24,
            "activation": "leaky_relu",
        },
    ),
    energy=NetworkSpec(
        "dcgan_energy",
        {
            "data_shape": _GREY,
            "width": 24,
            "activation": "silu",
            "floor": _FLOOR,
        },
    ),
    training=_ON_CPU,
)

# The schedule of the authors' code, with their sizes and rates.
_AS_PUBLISHED = TrainConfig(
    base_steps=150_000,
    energy_steps=5,
    boost_steps=100,
    boost_every=500,
    num_latents=128,
    energy_lr=1e-4,
    base_lr=1e-4,
    log_partition_update="closed_form",
    log_partition_memory=0.9,
    gradient_penalty=1.0,
    gradient_penalty_end=1.0,
    penalty_every=1,
    ema_decay=0.999,
    refit_steps=10_000,
    refit_gradient_penalty=0.3,
    evaluate_every=1000,
    precision="bfloat16",
    channels_last=True,
)

_CIFAR10_SNGAN = Preset(
    name="cifar10-sngan",
    data="cifar10",
    size=32,
    flip=True,
    held_out=2000,
    batch_size=128,
    generator=NetworkSpec("sngan_generator", {"latent_dim": 100, "data_shape": _COLOUR}),
    energy=NetworkSpec("sngan_energy", {"data_shape": _COLOUR, "floor": _FLOOR}),
    training=_AS_PUBLISHED,
)

PRESETS = {
    preset.name: preset
    for preset in (
        _MNIST,
        replace(_MNIST, name="fashion-cpu", data="fashion-mnist"),
        _CIFAR10_SNGAN,
        replace(
            _CIFAR10_SNGAN,
            name="cifar10-resnet",
            generator=NetworkSpec("resnet_generator", {"latent_dim": 100, "data_shape": _COLOUR}),
            energy=NetworkSpec("resnet_energy", {"data_shape": _COLOUR, "floor": _FLOOR}),
        ),
        replace(
            _CIFAR10_SNGAN,
            name="celeba-sngan",
            data="celeba",
            size=64,
            generator=NetworkSpec("sngan_generator", {"latent_dim": 100, "data_shape": _FACES}),
            energy=NetworkSpec("sngan_energy", {"data_shape": _FACES, "floor": _FLOOR}),
        ),
    )
}


def load_preset(name: str) -> Preset:
    """A preset by its name: data, networks and settings of a training.

    ``mnist-cpu`` and ``fashion-cpu`` train a small ConvNet on a CPU core. ``cifar10-sngan``,
    ``cifar10-resnet`` and ``celeba-sngan`` have the networks, sizes, rates and number of steps of
    the paper's experiments (Arbel, Zhou, Gretton, 2021, and the authors' code), and want a GPU;
    they have not been run to their end here.

    Args:
        name: one of ``PRESETS``.

    Raises:
        ValueError: the name is unknown; the known ones are listed.

    Example:
        >>> load_preset("cifar10-sngan").training.base_steps
        150000
    """
    check_choice("preset", name, PRESETS)
    return PRESETS[name]
