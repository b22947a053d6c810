"""The command line, ``pyro-gebm``: the only room that prints."""

import sys
from collections.abc import Sequence

import torch

from pyro_gebm.cli.networks import trusted_paths, user_code
from pyro_gebm.cli.parser import build_parser
from pyro_gebm.training import CheckpointError, TrainingError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, or 2 after one line that says what is wrong."""
    arguments = build_parser().parse_args(argv)
    torch.set_num_threads(arguments.threads)
    try:
        with user_code(trusted_paths(arguments)):
            arguments.action(arguments)
    except (ValueError, OSError, CheckpointError, TrainingError) as error:
        print(f"pyro-gebm: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\npyro-gebm: interrupted", file=sys.stderr)
        return 130
    return 0
