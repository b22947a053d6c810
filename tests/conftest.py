"""Settings of the whole suite."""

import os
import signal
from collections.abc import Iterator

import pyro
import pytest
import torch

# Two threads on two busy cores run small batched work many times slower than one; the processes
# that tests start are told so too.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

collect_ignore_glob = ["benchmarks/*"]  # they need libraries that the tests do not


@pytest.fixture(autouse=True)
def _fixed_global_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def double_precision_and_no_params() -> Iterator[None]:
    """For models of Pyro, which take torch's default dtype and leave parameters behind."""
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()


# A shell that starts the tests in the background has them ignore Ctrl-C, which some of them send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
