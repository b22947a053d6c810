"""The maximum likelihood that a base with a density begins with."""

import torch
from tqdm import tqdm

from pyro_gebm import Base
from pyro_gebm.cli.problems import Problem
from pyro_gebm.data import BatchLoader
from pyro_gebm.report import MetricsLog, RunFolder
from pyro_gebm.training import FlowConfig, deferred_interrupt, fit_flow, mean_nll

FLOW_BATCH = 256
FLOW_FIT = FlowConfig(steps=3000, lr=2e-3, weight_decay=1e-3, evaluate_every=20, patience=10)
"""Tables are small: a look often, and an early end."""


def fit_base(
    base: Base, problem: Problem, config: FlowConfig, seed: int, folder: RunFolder
) -> None:
    """Fit a flow to a problem, with a bar and a log; the best weights on held-out data stay.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM came.
    """
    loader = BatchLoader(
        problem.train,
        min(FLOW_BATCH, len(problem.train)),
        generator=torch.Generator().manual_seed(seed + 2),
        device=base.latent_prior.like.device,
    )
    steps = fit_flow(base, loader, config, held_out=problem.held_out)
    with (
        deferred_interrupt() as interrupted,
        MetricsLog(folder.flow_log) as log,
        tqdm(total=config.steps, desc="fit the flow", mininterval=0.3) as bar,
    ):
        for info in steps:
            figures = {"nll": float(info.nll), "grad_norm": info.grad_norm}
            if info.held_out is not None:
                figures["held_out_nll"] = info.held_out
                bar.set_postfix({"held_out": f"{info.held_out:.2f}"}, refresh=False)
            log.write(info.step, figures)
            bar.update(1)
            if interrupted():
                break
    if interrupted():
        print(
            "\nStopped while the flow was fitted, of which there is no checkpoint. Begin it again"
        )
        print(f"with: pyro-gebm train --resume --out {folder.path}")
        raise KeyboardInterrupt
    print(f"Held-out NLL of the flow: {mean_nll(base, problem.held_out):.3f} nats a row.")
