"""pyro-gebm train: settings from the command line, Ctrl-C, --resume, several processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyro_gebm as pg
from pyro_gebm.cli import main
from pyro_gebm.cli import training as cli_training

STEPS = ["--base-steps", "40", "--refit-steps", "30", "--checkpoint-every", "16"]
TOY = ["train", "--data", "gaussians8", *STEPS]
TIMINGS = ("seconds_data", "seconds_energy", "seconds_base")


def log_of(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return pg.load(folder / "gebm.pt").state_dict()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing interrupts."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main([*TOY, "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("stop", [1, 16, 23, 40, 41, 69])
def test_ctrl_c_writes_a_checkpoint_from_which_resume_goes_on_exactly(
    stop: int,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = cli_training.record

    def record(info: pg.StepInfo) -> object:
        done = info.step + (40 if info.phase == "refit" else 0)
        if done == stop:
            signal.raise_signal(signal.SIGINT)
        return plain(info)

    with monkeypatch.context() as patch:
        patch.setattr(cli_training, "record", record)
        assert main([*TOY, "--out", str(tmp_path)]) == 130
    assert "--resume" in capsys.readouterr().out
    assert log_of(tmp_path)[-1]["step"] == stop
    pg.load(tmp_path / "gebm.pt")
    torch.manual_seed(99)
    assert main(["train", "--resume", "--out", str(tmp_path)]) == 0
    assert log_of(tmp_path) == log_of(whole)
    expected, found = weights_of(whole), weights_of(tmp_path)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_killed_training_goes_on_exactly(whole: Path, tmp_path: Path) -> None:
    pid = os.fork()
    if not pid:  # the child trains, and kills itself between two checkpoints
        plain = cli_training.record

        def record(info: pg.StepInfo) -> object:
            if info.step == 25:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(info)

        cli_training.record = record
        main([*TOY, "--out", str(tmp_path)])
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert not (tmp_path / "gebm.pt").exists()
    assert main(["train", "--resume", "--out", str(tmp_path)]) == 0
    assert log_of(tmp_path) == log_of(whole)
    expected, found = weights_of(whole), weights_of(tmp_path)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_checkpoints_are_the_last_ones_and_the_best(whole: Path) -> None:
    names = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert names == ["checkpoint-00000048.pt", "checkpoint-00000064.pt"]


def test_settings_from_the_command_line_reach_the_trainer(tmp_path: Path) -> None:
    given = ["--set", "objective=gan", "--set", "gradient_penalty=0.5", "--set", "boost_steps=3"]
    chosen = ["--set", 'guard={"snapshot_every": 7}']
    assert main([*TOY, "--out", str(tmp_path), *given, *chosen]) == 0
    written = json.loads((tmp_path / "config.json").read_text())["train"]
    assert (written["objective"], written["gradient_penalty"]) == ("gan", 0.5)
    assert (written["boost_steps"], written["guard"]["snapshot_every"]) == (3, 7)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--set", "objective"], "NAME=VALUE"),
        (["--set", "objektive=gan"], "objektive"),
        (["--set", "objective=GAN"], "objective: expected"),
        (["--resume"], "config.json"),
        (["--checkpoint-every", "0"], "whole number >= 1"),
    ],
)
def test_bad_settings_are_refused(
    argv: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main([*TOY, "--out", str(tmp_path / "run"), *argv])
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 2 and named in capsys.readouterr().err


def test_two_processes_learn_what_one_does(whole: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command = [*launch, "-m", "pyro_gebm", *TOY, "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    expected, found = weights_of(whole), weights_of(tmp_path)
    for name in expected:
        # 70 steps of Adam, whose first steps divide rounding by itself.
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=2e-3)
    assert [line["step"] for line in log_of(tmp_path)] == list(range(1, 71))
