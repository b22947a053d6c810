"""The command line: refusals in one line with exit code 2, and a whole small road."""

import json
import os
from pathlib import Path

import pytest
import torch

from pyro_gebm import TrainConfig, inference_data
from pyro_gebm.cli import evaluation, main
from pyro_gebm.cli import problems as cli_problems

COMMANDS = ("demo", "train", "sample", "evaluate")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of eight Gaussians, trained for a moment, sampled by nobody yet."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    steps = ["--base-steps", "150", "--refit-steps", "100"]
    with pytest.MonkeyPatch.context() as patch:
        # The toys' own settings want thousands of steps; these give a tame model at once.
        patch.setattr(cli_problems, "TOY_TRAINING", TrainConfig())
        assert main(["train", "--data", "gaussians8", "--out", str(folder), *steps]) == 0
    return folder


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a refused command prints."""
    try:
        code = main(argv)
    except SystemExit as end:  # argparse's way out
        code = int(end.code or 0)
    printed = capsys.readouterr()
    assert code == 2
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("pyro-gebm: error: ")
    return printed.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option_of_the_run(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "--seed" in text and "--out" in text and "default" in text


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("fly",), "fly"),
        (("train", "--data", "cats"), "cats"),
        (("train", "--base-steps", "0"), "whole number >= 1"),
        (("train", "--device", "abacus"), "abacus"),
        (("train", "--seed", "-1"), "-1"),
        (("demo", "--num-samples", "4"), "at least 5 draws"),
        (("evaluate", "x", "--num-chains", "1"), "2 chains"),
        (("sample", "nowhere"), "nowhere"),
        (("sample", "x", "--kernel", "Gibbs"), "Gibbs"),
        (("sample", "x", "--tempering", "1"), "1"),
        (("sample", "x", "--global-moves", "maybe"), "maybe"),
        (("evaluate", "x", "--kernels", "HMC,Gibbs"), "Gibbs"),
        (("evaluate", "x", "--num-chains", "many"), "many"),
    ],
)
def test_bad_arguments_are_named(
    argv: tuple[str, ...],
    named: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert named in refused(capsys, *argv)
    assert not list(tmp_path.rglob("gebm.pt")), "no work before the refusal"


def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    monkeypatch.setattr(cli_problems, "load_digits", lambda: pytest.fail("work was begun"))
    assert str(in_the_way) in refused(capsys, "train", "--out", str(in_the_way / "run"))
    if os.geteuid() != 0:  # root writes everywhere
        tmp_path.chmod(0o500)
        assert str(tmp_path) in refused(capsys, "demo", "--out", str(tmp_path / "run"))


def test_nan_in_the_data_is_refused_before_training(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = cli_problems.load_digits()
    digits.train_images[7, 0, 3, 2] = torch.nan
    monkeypatch.setattr(cli_problems, "load_digits", lambda: digits)
    line = refused(capsys, "train", "--out", str(tmp_path / "run"))
    assert "nan" in line and "(7, 0, 3, 2)" in line
    assert not (tmp_path / "run" / "gebm.pt").exists()


def test_a_damaged_run_is_refused(
    run_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    whole = (run_folder / "gebm.pt").read_bytes()
    (tmp_path / "config.json").write_text((run_folder / "config.json").read_text())
    (tmp_path / "gebm.pt").write_bytes(whole[:-1])
    assert "sha256" in refused(capsys, "sample", str(tmp_path))
    (tmp_path / "gebm.pt").write_bytes(whole)
    (tmp_path / "config.json").write_text('{"data": "digits", "seed": 0}')
    assert "latents" in refused(capsys, "evaluate", str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    assert "not JSON" in refused(capsys, "evaluate", str(tmp_path))


def test_train_logs_what_it_did(run_folder: Path) -> None:
    config = json.loads((run_folder / "config.json").read_text())
    assert config["data"] == "gaussians8"
    assert (config["train"]["base_steps"], config["train"]["refit_steps"]) == (150, 100)
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == list(range(1, 251))
    assert [line["phase"] for line in lines] == ["alternate"] * 150 + ["refit"] * 100
    assert [line["phase_step"] for line in lines] == [*range(1, 151), *range(1, 101)]
    assert all(0 < line["importance_ess"] <= 1 for line in lines)
    judged = [line for line in lines if "held_out_bound" in line]
    assert [line["step"] for line in judged] == [150, 250]
    for line in judged:
        error = line["log_partition"] - line["held_out_log_z"]
        assert line["held_out_log_partition_error"] == pytest.approx(error, abs=1e-5)


def test_sample_writes_the_draws_it_reports(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--num-chains", "8", "--num-samples", "40", "--warmup-steps", "40", "--beta", "0.5"]
    argv = ["sample", str(run_folder), "--kernel", "nuts", "--out", str(tmp_path), *sizes]
    assert main(argv) == 0
    idata = inference_data.load(tmp_path / "idata.nc")
    assert inference_data.values(idata, "z").shape == (8, 40, 2)
    assert (idata.attrs["kernel"], float(idata.attrs["beta"])) == ("NUTS", 0.5)
    printed = capsys.readouterr().out
    assert f"R-hat {inference_data.rhat(idata).max():.3f}" in printed
    assert "Warning: not converged yet" in printed


@pytest.mark.parametrize(
    ("options", "attribute"),
    [([], "global_moves"), (["--tempering", "3"], "tempering"), (["--global-moves", "off"], None)],
)
def test_sample_crosses_between_modes_as_asked(
    run_folder: Path, tmp_path: Path, options: list[str], attribute: str | None
) -> None:
    sizes = ["--num-chains", "16", "--num-samples", "10", "--warmup-steps", "20"]
    assert main(["sample", str(run_folder), "--out", str(tmp_path), *sizes, *options]) == 0
    attributes = inference_data.load(tmp_path / "idata.nc").attrs
    assert attributes["kernel"] == ("HMC" if attribute == "tempering" else "ChEES")
    assert {"global_moves", "tempering"} & set(attributes) == ({attribute} if attribute else set())


def test_compiling_is_asked_of_sample(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--num-chains", "4", "--num-samples", "10", "--warmup-steps", "20"]
    argv = ["sample", str(run_folder), "--out", str(tmp_path), *sizes, "--compile"]
    assert "compile: expected False" in refused(capsys, *argv, "--tempering", "3")


def test_evaluate_compares_at_equal_gradients(
    run_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluation, "CURVE_CHAINS", 200)
    sizes = ["--num-chains", "16", "--num-samples", "50", "--warmup-steps", "50"]
    argv = ["evaluate", str(run_folder), "--out", str(tmp_path), *sizes]
    assert main([*argv, "--kernels", "NUTS,HMC,Langevin"]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    spent = {name: found["gradients"] for name, found in metrics["kernels"].items()}
    assert list(spent) == ["NUTS", "HMC", "Langevin"]
    # HMC's trajectories are of random length: its cost is met on average only.
    assert spent["HMC"] == pytest.approx(spent["NUTS"], rel=0.15)
    assert spent["Langevin"] == pytest.approx(spent["NUTS"], rel=0.15)
    for found in metrics["kernels"].values():
        base, refined = metrics["base"]["score"]["mean"], found["score"]["refined"]["mean"]
        assert found["score"]["base"]["mean"] == pytest.approx(base)
        assert found["score"]["ratio"]["mean"] == pytest.approx(refined / base, rel=0.3)
    assert metrics["verdict"] in capsys.readouterr().out
    for name in ("samples", "ranks", "energies", "curves"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
