"""pyro-gebm on a table: a flow by maximum likelihood, an energy on it, and its likelihood."""

import json
import math
import os
import re
import signal
from pathlib import Path

import pytest
import torch

import pyro_gebm as pg
from pyro_gebm.cli import evaluation, flow_training, likelihood, main
from pyro_gebm.cli import training as cli_training
from pyro_gebm.cli.runs import load_run
from pyro_gebm.data.preprocessing import prepare
from pyro_gebm.data.tables import read_table
from pyro_gebm.flows.density import data_log_prob
from pyro_gebm.metrics.likelihood import TrustedLogZ, UntrustedLogZError, log_likelihood

torch.set_num_threads(1)

STEPS = ["--flow-steps", "30", "--refit-steps", "30", "--checkpoint-every", "8"]
CHAINS = ["--num-chains", "8", "--num-samples", "10", "--warmup-steps", "10"]
TIMINGS = ("seconds_data", "seconds_energy", "seconds_base")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three skewed columns, and one to drop, which holds words."""
    z = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    x = torch.stack([100 + 9 * z[:, 0].exp(), z[:, 0] + 0.3 * z[:, 1], 0.01 * z[:, 2]], dim=1)
    lines = [f"{a:.6f};{b:.6f};wine;{c:.8f}" for a, b, c in x.tolist()]
    path = tmp_path_factory.mktemp("data") / "wine.csv"
    path.write_text("\n".join(["sugar;pH;kind;salt", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def whole(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training on a RealNVP that nothing interrupts."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main([*train(table), "--out", str(folder)]) == 0
    return folder


def train(table: Path, base: str = "nvp") -> list[str]:
    steps = STEPS if base != "mlp" else ["--base-steps", "5", "--refit-steps", "5"]
    return ["train", "--data", str(table), "--drop", "kind", "--base", base, *steps]


def log_of(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / name).open()]
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return pg.load(folder / "gebm.pt").state_dict()


def same_run(first: Path, second: Path) -> bool:
    expected, found = weights_of(first), weights_of(second)
    logs = all(log_of(first, n) == log_of(second, n) for n in ("metrics.jsonl", "flow.jsonl"))
    return logs and all(torch.equal(expected[name], found[name]) for name in expected)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a refused command prints."""
    try:
        code = main(argv)
    except SystemExit as end:
        code = int(end.code or 0)
    printed = capsys.readouterr().err
    last = printed.splitlines()[-1]
    assert code == 2 and last.startswith("pyro-gebm: error: "), printed
    assert "Traceback" not in printed
    return last


def test_a_run_says_where_its_data_came_from(whole: Path, table: Path) -> None:
    config = json.loads((whole / "config.json").read_text())
    assert (config["data"], config["base"]) == (str(table), "nvp")
    assert config["table"]["options"]["drop"] == ["kind"]
    assert (config["flow"]["steps"], config["train"]["base_steps"]) == (30, 0)
    scaling = config["table"]["scaling"]
    assert scaling["columns"] == ["sugar", "pH", "salt"]
    _, gebm, problem = load_run(str(whole))
    prepared = prepare(read_table(table, drop=["kind"]), seed=0)
    assert torch.equal(problem.test, prepared.test)
    assert scaling["loc"] == prepared.scaling.loc.tolist()
    assert torch.allclose(
        1 / torch.tensor(scaling["scale"]), prepared.scaling.matrix.diag().float()
    )
    assert gebm.energy.spec.options["activation"] == "tanh"


def test_the_flow_is_fitted_before_the_energy(whole: Path) -> None:
    flow, energy = log_of(whole, "flow.jsonl"), log_of(whole)
    assert [line["step"] for line in flow] == list(range(1, 31))
    assert flow[-1]["held_out_nll"] < flow[0]["nll"]
    assert [line["phase"] for line in energy] == ["refit"] * 30
    _, gebm, problem = load_run(str(whole))
    kept = min(line["held_out_nll"] for line in flow if "held_out_nll" in line)
    # The refit has left the base alone: it is still the best of its own training.
    assert -float(data_log_prob(gebm.base, problem.held_out).mean()) == pytest.approx(
        kept, abs=1e-5
    )


@pytest.mark.parametrize("stop", [1, 8, 19])
def test_ctrl_c_in_the_energy_resumes_exactly(
    stop: int, whole: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = cli_training.record

    def record(info: pg.StepInfo) -> object:
        if info.step == stop:
            signal.raise_signal(signal.SIGINT)
        return plain(info)

    with monkeypatch.context() as patch:
        patch.setattr(cli_training, "record", record)
        assert main([*train(table), "--out", str(tmp_path)]) == 130
    assert log_of(tmp_path)[-1]["step"] == stop
    torch.manual_seed(99)
    monkeypatch.setattr(cli_training, "fit_base", lambda *_: pytest.fail("the flow was there"))
    assert main(["train", "--resume", "--out", str(tmp_path)]) == 0
    assert same_run(whole, tmp_path)


def test_ctrl_c_in_the_flow_begins_it_again(
    whole: Path,
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = flow_training.fit_flow

    def fit_flow(*given: object, **named: object) -> object:
        for info in plain(*given, **named):
            if info.step == 7:
                signal.raise_signal(signal.SIGINT)
            yield info

    with monkeypatch.context() as patch:
        patch.setattr(flow_training, "fit_flow", fit_flow)
        assert main([*train(table), "--out", str(tmp_path)]) == 130
    assert "Begin it again" in capsys.readouterr().out
    assert not (tmp_path / "gebm.pt").exists()
    torch.manual_seed(99)
    assert main(["train", "--resume", "--out", str(tmp_path)]) == 0
    assert "begins again" in capsys.readouterr().out
    assert same_run(whole, tmp_path)


def test_evaluate_prints_the_likelihood(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(evaluation, "CURVE_CHAINS", 20)
    monkeypatch.setattr(likelihood, "LOG_Z_LATENTS", 5000)
    argv = ["evaluate", str(whole), "--out", str(tmp_path), "--kernels", "MALA", *CHAINS]
    assert main(argv) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert "the test rows" in metrics["protocol"]
    found = metrics["likelihood"]
    _, gebm, problem = load_run(str(whole))
    own = log_likelihood(gebm, problem.test, TrustedLogZ(**found["log_z"]))
    assert found["model"] == pytest.approx(own.mean, abs=1e-6)
    assert found["model_error"] == pytest.approx(own.standard_error, abs=1e-6)
    assert found["base"] == pytest.approx(float(data_log_prob(gebm.base, problem.test).mean()))
    assert found["gain"] == pytest.approx(found["model"] - found["base"], abs=1e-6)
    scale = json.loads((whole / "config.json").read_text())["table"]["scaling"]["scale"]
    assert found["log_det"] == pytest.approx(-sum(map(math.log, scale)))
    printed = capsys.readouterr().out
    assert f"Test log-likelihood of the model: {found['model']:.3f}" in printed
    assert f"add {found['log_det']:.3f} for the table's own" in printed
    assert (tmp_path / "samples.png").stat().st_size > 0
    assert "Test log-likelihood" in (tmp_path / "report.html").read_text()


def test_a_log_z_that_cannot_be_trusted_is_told_as_such(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UntrustedLogZError("its weights are worth 3")

    monkeypatch.setattr(likelihood, "trusted_log_z", refuse)
    _, gebm, problem = load_run(str(whole))
    found = likelihood.score_likelihoods(gebm, problem, 0)
    assert found is not None and found.model is None and found.gain is None
    words = likelihood.likelihood_words(found)
    assert words[1] == "That of the model is not to be had: its weights are worth 3."
    assert likelihood.score_likelihoods(gebm, problem._replace(base="mlp"), 0) is None


@pytest.mark.parametrize("base", ["nsf", "mlp"])
def test_other_bases_train_and_sample(base: str, table: Path, tmp_path: Path) -> None:
    assert main([*train(table, base), "--out", str(tmp_path)]) == 0
    assert main(["sample", str(tmp_path), "--kernel", "MALA", *CHAINS]) == 0
    _, gebm, problem = load_run(str(tmp_path))
    assert problem.base == base and gebm.base.sample(2).shape == (2, 3)
    assert (tmp_path / "flow.jsonl").exists() == (base == "nsf")


def test_a_flow_learns_a_toy(tmp_path: Path) -> None:
    steps = ["--flow-steps", "5", "--refit-steps", "5", "--base-steps", "2"]
    argv = ["train", "--data", "moons", "--base", "nvp", "--out", str(tmp_path), *steps]
    assert main(argv) == 0
    phases = [line["phase"] for line in log_of(tmp_path)]
    assert phases == ["alternate"] * 2 + ["refit"] * 5


def test_table_options_reach_the_table(table: Path, tmp_path: Path) -> None:
    options = ["--columns", "salt", "pH", "--preprocessing", "gebm", "--delimiter", ";", "--header"]
    argv = ["train", "--data", str(table), "--base", "nvp", "--out", str(tmp_path), *options]
    assert main([*argv, *STEPS, "--seed", "3"]) == 0
    _, _, problem = load_run(str(tmp_path))
    prepared = prepare(read_table(table, keep=["salt", "pH"]), "gebm", seed=3)
    assert torch.equal(problem.train, prepared.train)
    scaling = json.loads((tmp_path / "config.json").read_text())["table"]["scaling"]
    assert torch.tensor(scaling["matrix"]).shape == (2, 2)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--data", "moons", "--drop", "pH"], "no options of tables; got drop"),
        (["--data", "digits", "--base", "nvp"], "a flow wants vectors"),
        (["--data", "moons", "--flow-steps", "5"], "--flow-steps: expected a flow"),
        (["--data", "cats.csv"], "or a table; got 'cats.csv'"),
        (
            ["--data", "TABLE"],
            r"row 1 (line 2), column 'kind': expected a finite number; got 'wine'",
        ),
        (["--data", "TABLE", "--drop", "colour"], "got 'colour'"),
        (["--data", "TABLE", "--base", "maf"], "maf"),
        (["--data", "TABLE", "--preprocessing", "magic"], "magic"),
        (["--data", "TABLE", "--key", "x"], "key"),
        (["--data", "EMPTY"], "empty"),
        (["--data", "PICKLE"], "pickle"),
    ],
)
def test_bad_tables_are_refused_in_one_line(
    argv: list[str],
    named: str,
    table: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.csv").write_text("")
    torch.save({"a": os.getcwd}, tmp_path / "pickle.npy")
    paths = {"TABLE": table, "EMPTY": tmp_path / "empty.csv", "PICKLE": tmp_path / "pickle.npy"}
    given = [str(paths.get(word, word)) for word in argv]
    assert named in refused(capsys, "train", *given, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_table_that_has_changed_or_gone_is_refused(
    whole: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((whole / "config.json").read_text())
    copy = tmp_path / "copy.csv"
    (tmp_path / "gebm.pt").write_bytes((whole / "gebm.pt").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**config, "data": str(copy)}))
    assert str(copy) in refused(capsys, "sample", str(tmp_path))
    copy.write_text(re.sub("wine", "beer", table.read_text(), count=1))
    assert "sha256" in refused(capsys, "sample", str(tmp_path))
    copy.write_text(table.read_text())
    assert main(["sample", str(tmp_path), "--kernel", "MALA", *CHAINS]) == 0
