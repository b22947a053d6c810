"""What every objective refuses at the door."""

from torch import Tensor

from pyro_gebm._checks import check_dims


def check_energies(name: str, energies: Tensor) -> Tensor:
    """Return ``energies`` if they are a non-empty tensor (B,), else raise ``ValueError``."""
    check_dims(name, energies, 1, "(B,)")
    if energies.shape[0] == 0:
        raise ValueError(f"{name}: expected at least one energy; got an empty batch")
    return energies


def check_log_partition(
    log_partition: Tensor | float, name: str = "log_partition"
) -> Tensor | float:
    """Return ``log_partition`` if it is a number or a scalar tensor, else raise ``ValueError``."""
    if isinstance(log_partition, Tensor):
        check_dims(name, log_partition, 0, "(), one constant for the whole batch")
    return log_partition
