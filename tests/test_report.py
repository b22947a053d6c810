"""The run folder and the writers of figures: strict, continued after a kill, cleared."""

import json
import math
import random
import resource
import sys

import numpy as np
import pytest
import torch

from pyro_gebm.report import MetricsLog, RunFolder, StepWriter, TensorBoardLog
from pyro_gebm.training.checkpoints import Checkpoints


def figures(step):
    """Figures of a step, always the same for the same step."""
    choose = random.Random(step)
    odd = [math.nan, math.inf, -math.inf]
    bound = torch.tensor(choose.choice([choose.gauss(0, 1), *odd]))
    return {"phase": "alternate", "bound": bound, "ess": choose.random(), "note": None}


def write_steps(log, first, last):
    for step in range(first, last + 1):
        log.write(step, figures(step))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


# --- lines ------------------------------------------


def no_constant(name):
    raise AssertionError(f"{name} is not JSON")


def test_every_line_is_strict_json_with_the_values_given(path):
    values = {
        "float": 0.1,
        "int": 3,
        "bool": True,
        "text": "refit",
        "nothing": None,
        "tensor": torch.tensor(0.5),
        "whole": torch.tensor([7]),
        "numpy": np.float32(0.25),
        "nan": math.nan,
        "inf": torch.tensor(math.inf),
        "minus": np.float64(-math.inf),
    }
    with MetricsLog(path) as log:
        log.write(torch.tensor(4).item(), values)
    (line,) = path.read_text().splitlines()
    read = json.loads(line, parse_constant=no_constant)
    plain = {"float": 0.1, "int": 3, "bool": True, "text": "refit", "nothing": None}
    made = {"tensor": 0.5, "whole": 7, "numpy": 0.25, "nan": None, "inf": None, "minus": None}
    assert read == {"step": 4, **plain, **made}
    assert [type(read[name]) for name in ("int", "bool", "whole")] == [int, bool, int]


def test_a_tensor_is_read_when_it_is_written(path):
    running = torch.zeros(())
    with MetricsLog(path, flush_every=10) as log:
        for step in (1, 2, 3):
            running += 1
            log.write(step, {"sum": running})
    assert [json.loads(line)["sum"] for line in path.open()] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("step", "values", "told"),
    [
        (6, {"a": torch.ones(2)}, r"a: expected one number.*shape \(2,\)"),
        (6, {"a": [1]}, r"a: expected one number.*list"),
        (6, {"step": 1}, "other names than 'step'"),
        (4, {"a": 1}, r"step: expected 5, the last in .*got 4.*truncate_after"),
        (-1, {"a": 1}, "step"),
        (5.5, {"a": 1}, "step"),
    ],
)
def test_what_is_no_figure_is_refused_and_nothing_written(path, step, values, told):
    with MetricsLog(path) as log:
        log.write(5, {"a": 0})
        with pytest.raises(ValueError, match=told):
            log.write(step, values)
    assert path.read_text() == '{"step": 5, "a": 0}\n'


def test_a_resumed_training_that_forgot_to_truncate_is_told(path):
    with MetricsLog(path) as log:
        write_steps(log, 1, 9)
    with MetricsLog(path) as log:
        with pytest.raises(ValueError, match=r"step: expected 9, the last in .*got 5"):
            log.write(5, {"a": 1})
        log.truncate_after(4)
        log.write(5, {"a": 1})


def test_lines_are_held_back_and_written_whole(path):
    log = MetricsLog(path, flush_every=3)
    seen = []
    for step in range(1, 8):
        log.write(step, {"a": 0})
        seen.append(path.read_bytes().count(b"\n"))
    assert seen == [0, 0, 3, 3, 3, 6, 6]
    log.flush()
    assert path.read_bytes().count(b"\n") == 7
    log.write(8, {"a": 0})
    log.close()
    assert path.read_bytes().count(b"\n") == 8
    with pytest.raises(ValueError, match="flush_every"):
        MetricsLog(path, flush_every=0)


# --- kill and resume ------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_a_log_cut_anywhere_continues_as_if_it_had_not_been(tmp_path, seed):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with MetricsLog(whole) as log:
        write_steps(log, 1, 30)
    choose = random.Random(seed)
    content, resumed_from = b"", 0
    for _ in range(4):
        cut.write_bytes(content)
        with MetricsLog(cut, flush_every=choose.randint(1, 9)) as log:
            log.truncate_after(resumed_from)
            written = choose.randint(resumed_from, 30)
            write_steps(log, resumed_from + 1, written)
        content = cut.read_bytes()
        resumed_from = choose.randint(resumed_from, written)  # where the last checkpoint stands
        needed = sum(map(len, content.splitlines(keepends=True)[:resumed_from]))
        content = content[: choose.randint(needed, len(content))]  # what the kill left
    cut.write_bytes(content)
    with MetricsLog(cut) as log:
        log.truncate_after(resumed_from)
        write_steps(log, resumed_from + 1, 30)
    assert cut.read_bytes() == whole.read_bytes()


def test_a_torn_last_line_is_dropped_on_opening(path):
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "bou')
    with MetricsLog(path) as log:
        log.write(2, {"again": 1})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 2, "again": 1}\n'


def test_lines_held_back_are_dropped_too(path):
    with MetricsLog(path) as log:
        write_steps(log, 1, 9)
        log.truncate_after(4)
        log.write(5, {"a": 1})
    assert [json.loads(line)["step"] for line in path.open()] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"loss": 1}', '{"step": null}', "\0\0"])
def test_another_file_is_not_cut(path, line):
    before = f'{{"step": 1}}\n{line}\n{{"step": 3}}\n'
    path.write_text(before)
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 "):
        MetricsLog(path)
    assert path.read_text() == before


def test_a_full_disk_is_an_os_error_and_leaves_lines_that_can_be_read(path):
    with MetricsLog(path) as log:
        write_steps(log, 1, 3)
    whole = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = MetricsLog(path, flush_every=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 9, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            log.write(4, {"a": 1})
        assert path.read_bytes()[: len(whole)] == whole
        with MetricsLog(path) as again:  # as after the end of the process
            again.flush()
        assert path.read_bytes() == whole
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.close()


# --- TensorBoard ------------------------------------------


def test_without_tensorboard_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        TensorBoardLog(tmp_path)


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_shows_the_numbers_of_a_resumed_training(tmp_path):
    pytest.importorskip("tensorboard")
    writer: StepWriter = TensorBoardLog(tmp_path)
    for step in range(1, 7):
        writer.write(step, {"bound": torch.tensor(0.5 * step), "phase": "refit", "none": None})
    writer.flush()
    writer.close()
    writer = TensorBoardLog(tmp_path)
    writer.truncate_after(4)
    with pytest.raises(ValueError, match="bound"):
        writer.write(5, {"bound": torch.ones(2)})
    writer.write(5, {"bound": -1})
    writer.close()
    assert scalars(tmp_path) == {"bound": [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0), (5, -1.0)]}


# --- the folder ------------------------------------------


def test_clear_leaves_nothing_of_an_earlier_run_and_all_else(tmp_path):
    folder = RunFolder(tmp_path)
    Checkpoints(folder.checkpoints).save({}, 5, {"held_out_bound": 1.0})
    (folder.checkpoints / ".checkpoint-00000006.pt.7.part").write_text("")
    folder.tensorboard.mkdir()
    mine = [tmp_path / "notes.txt", folder.tensorboard / "notes.txt", folder.config]
    for file in [*mine, folder.tensorboard / "events.out.tfevents.1.host.2.0"]:
        file.write_text("")
    for product in (folder.training_log, folder.checkpoint, folder.idata, folder.metrics):
        product.write_text("")
    folder.picture("samples").write_text("")
    folder.clear()
    assert sorted(file for file in tmp_path.rglob("*") if file.is_file()) == sorted(mine)
    assert not folder.checkpoints.exists()
    assert Checkpoints(folder.checkpoints).latest() is None
    folder.clear()  # of nothing
