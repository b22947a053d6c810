"""The arguments of the commands."""

import argparse
from collections.abc import Callable
from typing import NoReturn, TypeAlias, final

from pyro_gebm import TrainConfig, __version__
from pyro_gebm.cli import commands
from pyro_gebm.cli.arguments import (
    as_count,
    as_kernel_or_auto,
    as_kernels,
    as_options,
    as_seed,
    as_seeds,
    as_setting,
    as_tempering,
    kernel_help,
)
from pyro_gebm.cli.comparing import run_compare
from pyro_gebm.cli.flow_training import FLOW_FIT
from pyro_gebm.cli.image_problems import DATA_ROOT, USUAL
from pyro_gebm.cli.problems import BASES, PROBLEMS
from pyro_gebm.data.preprocessing import PREPROCESSINGS
from pyro_gebm.presets import PRESETS


@final
class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that names defaults, where there are some."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


@final
class OneLineParser(argparse.ArgumentParser):
    """A parser whose complaint is one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and the message."""
        self.exit(2, f"pyro-gebm: error: {message} (see {self.prog} --help)\n")


Subparsers: TypeAlias = "argparse._SubParsersAction[OneLineParser]"


def build_parser() -> argparse.ArgumentParser:
    """The parser; each command sets ``action``, a function of the parsed arguments."""
    parser = OneLineParser(
        prog="pyro-gebm",
        description="Train generalized energy-based models, sample their latent posterior, "
        "and see whether the energy helped.",
    )
    parser.add_argument("--version", action="version", version=f"pyro-gebm {__version__}")
    parser.add_argument(
        "--threads",
        type=as_count,
        default=1,
        help="CPU threads of torch; small networks are fastest with one",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_demo(subparsers)
    _add_train(subparsers)
    _add_sample(subparsers)
    _add_evaluate(subparsers)
    _add_compare(subparsers)
    return parser


def _add_demo(subparsers: Subparsers) -> None:
    demo = _command(
        subparsers, "demo", "train on digits, sample, score and draw", commands.run_demo
    )
    _add_run_options(demo, out="runs/demo")
    _add_training_options(demo)
    _add_chain_options(demo, num_samples=250, warmup_steps=100)
    demo.set_defaults(beta=1.0)


def _add_train(subparsers: Subparsers) -> None:
    train = _command(subparsers, "train", "train a model into a run folder", commands.run_train)
    text = f"what to learn: {', '.join(PROBLEMS)} (the first if not given), a table (.csv and "
    text += "other text, .npy, .npz), a folder of images, or images in .npy or .npz"
    train.add_argument("--data", help=text)
    text = "a named training on images of --data-root: data, networks and settings"
    train.add_argument("--preset", choices=PRESETS, help=text)
    text = "networks of the base; nvp and nsf are flows, fitted by maximum likelihood first"
    train.add_argument("--base", choices=BASES, default="mlp", help=text)
    _add_run_options(train, out="runs/train")
    _add_place_options(train)
    text = "fetch what is missing of the preset's images"
    train.add_argument("--download", action="store_true", help=text)
    _add_training_options(train)
    text = f"steps of a flow's maximum likelihood at most; {FLOW_FIT.steps:,} by default"
    train.add_argument("--flow-steps", type=as_count, help=text)
    text = "go on from the newest checkpoint in --out, with its settings"
    train.add_argument("--resume", action="store_true", help=text)
    text = "steps from one checkpoint to the next"
    train.add_argument("--checkpoint-every", type=as_count, default=500, help=text)
    text = "newest checkpoints to keep, besides the best of the refit"
    train.add_argument("--keep", type=as_count, default=2, help=text)
    text = "write figures for TensorBoard too"
    train.add_argument("--tensorboard", action="store_true", help=text)
    _add_network_options(train)
    _add_table_options(train)
    _add_image_options(train)


def _add_network_options(train: argparse.ArgumentParser) -> None:
    group = train.add_argument_group("networks")
    for role, takes in (("generator", "latents (B, D)"), ("energy", "data (B, ...)")):
        text = f"another one: registered, or a class of yours, package.module:Name, of {takes}"
        group.add_argument(f"--{role}", metavar="NAME", help=text)
        text = "of its constructor, as JSON; those of the usual one without a name"
        group.add_argument(f"--{role}-options", type=as_options, metavar="JSON", help=text)
    text = "D; that of the generator's options, or the data's own, if not given"
    group.add_argument("--latent-dim", type=as_count, help=text)


def _add_image_options(train: argparse.ArgumentParser) -> None:
    text = f"networks and settings are those of {USUAL}, at the images' own size"
    group = train.add_argument_group("images", text)
    text = "side in pixels to which they are brought; images as they are if not given"
    group.add_argument("--size", type=as_count, help=text)
    text = "mirror at random; the preset's own if not given, else not"
    group.add_argument("--flip", action=argparse.BooleanOptionalAction, help=text)
    text = "pass over the classes that subfolders or an array of labels make"
    group.add_argument("--no-labels", dest="labels", action="store_const", const=False, help=text)


def _add_table_options(train: argparse.ArgumentParser) -> None:
    group = train.add_argument_group("tables")
    text = "one character between fields, ' ' for any white space; found if not given"
    group.add_argument("--delimiter", help=text)
    text = "whether the first line has names; found if not given"
    group.add_argument("--header", action=argparse.BooleanOptionalAction, help=text)
    group.add_argument("--key", help="name of the array in a .npz with several, of images too")
    text = "columns to keep, by name or, without names, by place from 0"
    group.add_argument("--columns", dest="kept", nargs="+", metavar="COLUMN", help=text)
    text = "columns to leave out"
    group.add_argument("--drop", nargs="+", metavar="COLUMN", help=text)
    text = "how rows are split and columns scaled; standardize if not given"
    group.add_argument("--preprocessing", choices=PREPROCESSINGS, help=text)
    text = "add noise to rounded values, whose density has no bound otherwise"
    group.add_argument("--dequantize", action="store_true", help=text)


def _add_place_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    text = f"folder of image sets; {DATA_ROOT} of the environment, or the run's own, if not given"
    command.add_argument("--data-root", metavar="DIR", help=text)
    text = "a network of your code that the run may import, package.module:Name; repeatable"
    command.add_argument("--trust", action="append", metavar="NAME", help=text)


def _add_sample(subparsers: Subparsers) -> None:
    text = "sample a trained model's latent posterior"
    sample = _command(subparsers, "sample", text, commands.run_sample)
    sample.add_argument("run", help="run folder of 'train' or 'demo'")
    text = "auto (ChEES from 16 chains on, HMC below), or " + kernel_help()
    sample.add_argument("--kernel", type=as_kernel_or_auto, default="auto", help=text)
    sample.add_argument("--beta", type=float, default=1.0, help="inverse temperature of the energy")
    sample.add_argument(
        "--global-moves",
        choices=["auto", "off"],
        default="auto",
        help="jumps that propose from the base",
    )
    sample.add_argument(
        "--tempering", type=as_tempering, default=None, help="auto, or a number of replicas"
    )
    text = "draw ranks, traces, autocorrelation and the chains in motion"
    sample.add_argument("--pictures", action="store_true", help=text)
    text = "compile the sampler for this model first, which takes some ten seconds"
    sample.add_argument("--compile", action="store_true", help=text)
    sample.add_argument("--thinning", type=as_count, default=1, help="transitions per draw kept")
    _add_place_options(sample)
    _add_run_options(sample, out=None)
    _add_chain_options(sample, num_samples=1000, warmup_steps=None)


def _add_evaluate(subparsers: Subparsers) -> None:
    text = "compare kernels with the base at equal gradient evaluations"
    evaluate = _command(subparsers, "evaluate", text, commands.run_evaluate)
    evaluate.add_argument("run", help="run folder of 'train' or 'demo'")
    evaluate.add_argument(
        "--kernels",
        type=as_kernels,
        default=",".join(commands.DEMO_KERNELS),
        help=f"comma-separated; the first sets the budget of the others; {kernel_help()}",
    )
    evaluate.add_argument("--beta", type=float, default=1.0, help="inverse temperature")
    _add_place_options(evaluate)
    _add_run_options(evaluate, out=None)
    _add_chain_options(evaluate, num_samples=250, warmup_steps=100)


def _add_compare(subparsers: Subparsers) -> None:
    text = "kernels from the same base samples, score against gradient evaluations, over seeds"
    compare = _command(subparsers, "compare", text, run_compare)
    compare.add_argument("run", help="run folder of 'train' or 'demo'")
    compare.add_argument(
        "--kernels",
        type=as_kernels,
        default="NUTS,HMC,Langevin,ChEES",
        help=f"comma-separated; {kernel_help()}",
    )
    text = "gradient evaluations per chain, warm-up included"
    compare.add_argument("--budget", type=as_count, default=20_000, help=text)
    compare.add_argument("--beta", type=float, default=1.0, help="inverse temperature")
    compare.add_argument("--seeds", type=as_seeds, default="0,1,2", help="comma-separated")
    compare.add_argument(
        "--global-moves", choices=["auto", "off"], default="off", help="jumps beside each kernel"
    )
    text = "chains, in one batch; their positions are the set that is scored"
    compare.add_argument("--num-chains", type=as_count, default=1000, help=text)
    text = "transitions of warm-up; by the number of chains"
    compare.add_argument("--warmup-steps", type=as_count, default=None, help=text)
    compare.add_argument("--out", default=None, help="folder to write to; the run's own by default")
    _add_place_options(compare)


def _command(
    subparsers: Subparsers,
    name: str,
    text: str,
    action: Callable[[argparse.Namespace], None],
) -> argparse.ArgumentParser:
    command = subparsers.add_parser(name, help=text, description=text, formatter_class=_Help)
    command.set_defaults(action=action)
    return command


def _add_run_options(command: argparse.ArgumentParser, *, out: str | None) -> None:
    text = "folder to write to" + ("" if out else "; the run's own if not given")
    command.add_argument("--out", default=out, help=text)
    command.add_argument("--seed", type=as_seed, default=0, help="of everything random")


def _add_training_options(command: argparse.ArgumentParser) -> None:
    text = f"steps of the base; {TrainConfig().base_steps:,} by default, none on a flow"
    command.add_argument("--base-steps", type=as_count, help=text)
    text = f"energy steps of the refit; {TrainConfig().refit_steps:,} by default, 1,000 on a flow"
    command.add_argument("--refit-steps", type=as_count, help=text)
    command.add_argument(
        "--set",
        dest="settings",
        metavar="NAME=VALUE",
        type=as_setting,
        action="append",
        default=[],
        help="any other setting of TrainConfig, such as objective=gan or gradient_penalty=0.3",
    )


def _add_chain_options(
    command: argparse.ArgumentParser, *, num_samples: int, warmup_steps: int | None
) -> None:
    command.add_argument("--num-chains", type=as_count, default=64, help="chains, in one batch")
    command.add_argument(
        "--num-samples", type=as_count, default=num_samples, help="draws kept per chain"
    )
    command.add_argument(
        "--warmup-steps",
        type=as_count,
        default=warmup_steps,
        help="transitions of warm-up" + ("" if warmup_steps else "; by the number of chains"),
    )
