"""A preset: data, networks and settings of a training, as one plain value."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, final

from pyro_gebm._checks import check_choice, check_count
from pyro_gebm.base import Base, StandardNormal
from pyro_gebm.data.image_sets import IMAGE_SETS
from pyro_gebm.model import GEBM
from pyro_gebm.nets import Network, NetworkSpec, build
from pyro_gebm.training import TrainConfig


@final
@dataclass(frozen=True)
class Preset:
    """Data, networks and settings that go together.

    Args:
        name: of the preset.
        data: a name that ``data.load_image_set`` knows.
        size: side of the images in pixels, to which they are brought.
        flip: mirror images at random.
        held_out: training images, the last ones, that are kept from training to judge it by.
        batch_size: of all processes together.
        generator: G, with latents of ``latent_dim``.
        energy: E.
        training: settings.

    Raises:
        ValueError: a value is out of its range, or the networks do not go together.

    Example:
        >>> from pyro_gebm.presets import load_preset
        >>> preset = load_preset("mnist-cpu")
        >>> preset.data, preset.data_shape
        ('mnist', (1, 28, 28))
        >>> gebm = preset.build()
        >>> Preset.from_dict(preset.to_dict()) == preset
        True
    """

    name: str
    data: str
    size: int
    flip: bool
    held_out: int
    batch_size: int
    generator: NetworkSpec
    energy: NetworkSpec
    training: TrainConfig

    def __post_init__(self) -> None:
        check_choice("data", self.data, IMAGE_SETS)
        check_choice("flip", self.flip, (False, True))
        for name in ("size", "held_out", "batch_size"):
            check_count(name, getattr(self, name))
        shape = self.generator.options.get("data_shape")
        if shape != self.energy.options.get("data_shape") or list(self.data_shape[1:]) != [
            self.size,
            self.size,
        ]:
            raise ValueError(
                f"data_shape: expected (channels, {self.size}, {self.size}) in both networks; got "
                f"{shape} in the generator's and {self.energy.options.get('data_shape')} in the "
                "energy's"
            )

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Of an image, (channels, size, size)."""
        shape = self.generator.options.get("data_shape")
        return tuple(shape) if isinstance(shape, list) else ()

    @property
    def latent_dim(self) -> int:
        """D."""
        dim = self.generator.options["latent_dim"]
        assert isinstance(dim, int)
        return dim

    def build(self) -> GEBM:
        """Fresh networks, initialised from torch's global generator."""
        generator: Network = build(self.generator)
        return GEBM(Base(generator, StandardNormal(self.latent_dim)), build(self.energy))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, which JSON can hold."""
        plain = asdict(self)
        for name in ("generator", "energy"):
            plain[name] = {"name": plain[name][0], "options": dict(plain[name][1])}
        return plain

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Preset":
        """The preset that ``to_dict`` wrote, back from JSON.

        Raises:
            ValueError: a name is missing or unknown, or a value out of its range.
        """
        known = {field.name for field in fields(cls)}
        if set(settings) != known:
            raise ValueError(f"preset: expected {sorted(known)}; got {sorted(settings)}")
        made = dict(settings)
        for name in ("generator", "energy"):
            made[name] = NetworkSpec(**made[name])
        return cls(**{**made, "training": TrainConfig.from_dict(made["training"])})
