"""What the commands do: compute, write the run folder, print."""

import argparse
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_gebm import GEBM, TrainConfig, __version__, inference_data
from pyro_gebm import sample as sample_latents
from pyro_gebm.cli.evaluation import (
    NUM_SETS,
    Settings,
    check_settings,
    judge_base,
    judge_run,
    run_kernels,
    set_size,
    short_run,
)
from pyro_gebm.cli.flow_training import FLOW_FIT
from pyro_gebm.cli.image_problems import READING as OF_IMAGES
from pyro_gebm.cli.judges import build_judge
from pyro_gebm.cli.likelihood import likelihood_words, score_likelihoods
from pyro_gebm.cli.models import with_networks
from pyro_gebm.cli.networks import choices, trust_words
from pyro_gebm.cli.pictures import (
    draw_chains,
    draw_diagnostics,
    draw_evaluation,
    draw_training,
)
from pyro_gebm.cli.problems import (
    FLOWS,
    PROBLEMS,
    Problem,
    load_preset_problem,
    load_problem,
)
from pyro_gebm.cli.processes import process_group
from pyro_gebm.cli.runs import device_of, load_run, open_folder, problem_of
from pyro_gebm.cli.table_problems import PREPARING, READING
from pyro_gebm.cli.tables import comparison_table, metrics_json, notes, verdict_line
from pyro_gebm.cli.training import Habits, train
from pyro_gebm.presets import load_preset
from pyro_gebm.report import (
    Page,
    RunFolder,
    Section,
    format_table,
    render_page,
    write_json,
    write_text,
)
from pyro_gebm.sampling import push_forward
from pyro_gebm.training import FlowConfig, processes

DEMO_KERNELS = ("NUTS", "HMC", "Langevin")


def run_demo(arguments: argparse.Namespace) -> None:
    """Train on the digits, sample with three kernels, score, draw, say what comes next."""
    started = time.perf_counter()
    settings = _settings(arguments)
    folder = open_folder(arguments.out)
    problem = load_problem("digits", arguments.seed)
    print(f"Digits: {len(problem.train):,} images to learn from, {len(problem.test):,} to test on.")
    gebm = train(
        problem,
        _train_config(problem, arguments),
        seed=arguments.seed,
        device=torch.device("cpu"),
        folder=folder,
        procs=processes(),
        habits=Habits(),
    )
    _evaluate(gebm, problem, DEMO_KERNELS, settings, folder, folder)
    print(f"\nDone in {time.perf_counter() - started:.0f} s. Look at {folder.path}/samples.png.")
    print(f"Next: pyro-gebm sample {folder.path} --kernel HMC --beta 2 --num-samples 500")


def run_train(arguments: argparse.Namespace) -> None:
    """Train a model into a run folder, alone or as one of torchrun's processes."""
    with process_group(arguments.device) as (procs, device_name):
        folder = open_folder(arguments.out)
        if arguments.download and procs.world_size > 1:
            raise ValueError(
                f"--download: expected one process to fetch data; got {procs.world_size}; fetch "
                "them first"
            )
        if arguments.resume:
            saved = folder.read_config()
            seed = int(saved["seed"])
            problem = problem_of(folder, arguments.data_root, training=True)
            config = TrainConfig.from_dict(saved["train"])
            flow = FlowConfig(**saved.get("flow", {}))
        else:
            seed = arguments.seed
            problem = with_networks(_asked(arguments), choices(arguments), arguments.latent_dim)
            config = _train_config(problem, arguments)
            flow = _flow_config(problem, arguments)
        habits = Habits(
            arguments.checkpoint_every,
            arguments.keep,
            arguments.tensorboard,
            arguments.resume,
            flow,
        )
        train(
            problem,
            config,
            seed=seed,
            device=device_of(device_name),
            folder=folder,
            procs=procs,
            habits=habits,
        )
        if procs.rank == 0:
            draw_training(folder, folder)
            words = f"pyro-gebm evaluate {folder.path}{trust_words(problem.networks)}"
            print(f"Wrote {folder.checkpoint}. Next: {words}")


def run_sample(arguments: argparse.Namespace) -> None:
    """Sample a trained model's latent posterior into an InferenceData file."""
    folder, gebm, problem = load_run(arguments.run, arguments.data_root, arguments.device)
    out = open_folder(arguments.out or folder.path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        idata = sample_latents(
            gebm,
            kernel=arguments.kernel,
            num_samples=arguments.num_samples,
            warmup_steps=arguments.warmup_steps,
            num_chains=arguments.num_chains,
            beta=arguments.beta,
            thinning=arguments.thinning,
            global_moves=None if arguments.global_moves == "off" else "auto",
            tempering=arguments.tempering,
            compile=arguments.compile,
            seed=arguments.seed,
        )
    inference_data.save(idata, out.idata)
    rhat, ess = inference_data.worst_rhat(idata), inference_data.least_ess(idata)
    chains, draws, _ = inference_data.values(idata, "z").shape
    if idata.attrs["interrupted"]:
        print(f"Interrupted: {draws} of {arguments.num_samples} draws are there.")
    print(
        f"{idata.attrs['kernel']}, {chains} chains x {draws} draws "
        f"at β = {arguments.beta:g} in {idata.attrs['sampling_time']:.1f} s: "
        f"R-hat {rhat:.3f} (largest), ESS {ess:,.0f} (smallest)"
    )
    for warning in caught:
        print(f"Warning: {warning.message}")
    if arguments.pictures:
        drawn = draw_chains(gebm, problem, idata, arguments.beta, out)
        drawn += draw_diagnostics(idata, out)
        print(f"Drew {', '.join(picture.path.name for picture in drawn)}.")
    print(f"Wrote {out.idata}. Next: import arviz as az; az.from_netcdf('{out.idata}')")


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Compare kernels and the base on a trained model."""
    settings = _settings(arguments)
    folder, gebm, problem = load_run(arguments.run, arguments.data_root, arguments.device)
    out = open_folder(arguments.out or folder.path)
    _evaluate(gebm, problem, arguments.kernels, settings, folder, out)


def _evaluate(
    gebm: GEBM,
    problem: Problem,
    kernels: tuple[str, ...],
    settings: Settings,
    trained: RunFolder,
    folder: RunFolder,
) -> None:
    judge = build_judge(problem, progress=True)
    runs = run_kernels(gebm, kernels, settings)
    size = set_size(runs)
    torch.manual_seed(settings.seed)
    base_sets = [_base_samples(gebm, size) for _ in range(NUM_SETS)]
    base = judge_base(problem, judge, base_sets, settings.seed)
    verdicts = [judge_run(gebm, problem, judge, done, base_sets) for done in runs]
    table = comparison_table(judge, base, verdicts)
    likelihoods = score_likelihoods(gebm, problem, settings.seed)
    told = [] if likelihoods is None else likelihood_words(likelihoods)
    words = [*notes(judge, base, verdicts, settings, size), *told]
    print("\n".join(["", format_table(*table), "", *words, "", verdict_line(verdicts, base)]))
    metrics = metrics_json(judge, base, verdicts, settings, size)
    if likelihoods is not None:
        metrics["likelihood"] = likelihoods._asdict()
    write_json(folder.metrics, metrics)
    inference_data.save(runs[0].idata, folder.idata)
    shorts = {done.kernel: short_run(gebm, problem, judge, done, settings) for done in runs}
    samples = torch.cat(base_sets) if problem.images is None else base_sets[0]
    first = runs[0].idata
    results = draw_evaluation(gebm, problem, judge, runs, shorts, base, samples, folder)
    results += draw_chains(gebm, problem, first, settings.beta, folder)
    chains, training = draw_diagnostics(first, folder), draw_training(trained, folder)
    page = Page(
        f"{problem.name}: the model beside its base",
        verdict_line(verdicts, base),
        [
            Section("Scores", [table], notes=words),
            Section("Samples and energies", pictures=results),
            Section(f"Chains of {runs[0].kernel}", pictures=chains),
            *([Section("Training", pictures=training)] if training else []),
        ],
        [("pyro-gebm", __version__), ("torch", torch.__version__), ("seed", str(settings.seed))],
    )
    write_text(folder.page, render_page(page))
    pictures = [picture.path for picture in [*results, *chains, *training]]
    written = [folder.metrics, folder.idata, folder.page, *pictures]
    print(f"Wrote {', '.join(path.name for path in written)} to {folder.path}.")


def _settings(arguments: argparse.Namespace) -> Settings:
    return check_settings(
        Settings(
            arguments.num_chains,
            arguments.num_samples,
            arguments.warmup_steps,
            arguments.beta,
            arguments.seed,
        )
    )


def _train_config(problem: Problem, arguments: argparse.Namespace) -> TrainConfig:
    settings = asdict(problem.training)
    given = {"base_steps": arguments.base_steps, "refit_steps": arguments.refit_steps}
    settings |= {name: steps for name, steps in given.items() if steps is not None}
    return TrainConfig.from_dict(settings | dict(arguments.settings))


def _flow_config(problem: Problem, arguments: argparse.Namespace) -> FlowConfig:
    if arguments.flow_steps is None:
        return FLOW_FIT
    if problem.base not in FLOWS:
        raise ValueError(f"--flow-steps: expected a flow as --base; got {problem.base}")
    return replace(FLOW_FIT, steps=arguments.flow_steps)


def _asked(arguments: argparse.Namespace) -> Problem:
    """The data that ``train`` is asked to learn."""
    if arguments.preset is None:
        if arguments.download:
            raise ValueError(
                "--download: expected a --preset, whose images are to be had; got none"
            )
        data = _named_data(arguments.data)
        return load_problem(data, arguments.seed, arguments.base, _data_options(arguments))
    given = _data_options(arguments)
    flip = given.pop("flip", None)
    others = [*(["--data"] if arguments.data else []), *sorted(given)]
    if others or arguments.base != "mlp":
        told = ", ".join(others) or f"--base {arguments.base}"
        raise ValueError(f"--preset: expected no other data and no options of theirs; got {told}")
    preset = load_preset(arguments.preset)
    preset = preset if flip is None else replace(preset, flip=flip)
    return load_preset_problem(preset, arguments.data_root, download=arguments.download)


def _named_data(given: str | None) -> str:
    """A problem's name, or the absolute path of data."""
    if given is None or given in PROBLEMS:
        return given or PROBLEMS[0]
    if not Path(given).exists():
        raise ValueError(
            f"--data: expected one of {', '.join(PROBLEMS)}, images, or a table; got {given!r}"
        )
    return str(Path(given).resolve())


def _data_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of tables and images that were given."""
    options = {"keep": arguments.kept}  # --keep is the number of checkpoints
    names = {*READING, *PREPARING, *OF_IMAGES} - {"keep"}
    options |= {name: getattr(arguments, name) for name in sorted(names)}
    if arguments.dequantize is False:
        del options["dequantize"]
    return {name: value for name, value in options.items() if value is not None}


def _base_samples(gebm: GEBM, size: int) -> Tensor:
    """Samples of the base, on the CPU, some at a time."""
    return push_forward(gebm, gebm.base.latent_prior.sample(size))
