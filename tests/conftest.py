"""Settings of the whole suite."""

import os
import signal

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


# A shell that starts the tests in the background has them ignore Ctrl-C, which some of them send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
