"""What the command line's words become: numbers, names, settings; a refusal is a line."""

import argparse
import json
from typing import Any

from pyro_gebm.mcmc import KERNELS


def as_count(text: str) -> int:
    """A whole number >= 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1; got {text!r}")
    return int(text)


def as_setting(text: str) -> tuple[str, Any]:
    """A name and a value, of which JSON is read as such."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE; got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value  # a word


def as_options(text: str) -> dict[str, Any]:
    """An object of JSON."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'expected JSON such as {{"width": 32}}; got {text!r}')
    return found


def as_seed(text: str) -> int:
    """A whole number >= 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number >= 0; got {text!r}")
    return int(text)


def as_seeds(text: str) -> tuple[int, ...]:
    """Seeds between commas."""
    return tuple(as_seed(seed.strip()) for seed in text.split(","))


def as_kernel(text: str) -> str:
    """The name of a kernel, in any case of letters."""
    by_name = {name.lower(): name for name in KERNELS}
    if text.lower() not in by_name:
        known = ", ".join(KERNELS)
        raise argparse.ArgumentTypeError(f"expected one of {known}; got {text!r}")
    return by_name[text.lower()]


def as_kernel_or_auto(text: str) -> str:
    """The name of a kernel, or auto."""
    return "auto" if text.lower() == "auto" else as_kernel(text)


def as_tempering(text: str) -> str | int:
    """A number of replicas, or auto."""
    if text.lower() == "auto":
        return "auto"
    if not text.isdigit() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"expected auto or a whole number >= 2; got {text!r}")
    return int(text)


def as_kernels(text: str) -> tuple[str, ...]:
    """Names of kernels between commas."""
    return tuple(as_kernel(name.strip()) for name in text.split(","))


def kernel_help() -> str:
    """The kernels there are, for a help text."""
    return "one of " + ", ".join(KERNELS)
