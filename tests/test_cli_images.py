"""pyro-gebm on images: presets, folders and arrays, the user's own networks, and how they score."""

import json
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pyro_gebm as pg
from pyro_gebm.cli import commands, comparing, evaluation, image_problems, judges, main
from pyro_gebm.cli import training as cli_training
from pyro_gebm.cli.judges import PixelScorer, build_judge
from pyro_gebm.cli.problems import load_problem, read_problem
from pyro_gebm.cli.runs import load_run
from pyro_gebm.data import ImageLoader, ImageSet, scale_pixels
from pyro_gebm.metrics import energy_distance, train_classifier
from pyro_gebm.presets import PRESETS, Preset, load_preset

torch.set_num_threads(1)

STEPS = ["--base-steps", "4", "--refit-steps", "3", "--set", "boost_steps=2"]
STEPS += ["--set", "evaluation_samples=16", "--set", "num_latents=8", "--checkpoint-every", "3"]
NARROW = ["--generator-options", '{"width": 2}', "--energy-options", '{"width": 2}']
CHAINS = ["--num-chains", "6", "--num-samples", "10", "--warmup-steps", "6"]
TIMINGS = ("seconds_data", "seconds_energy", "seconds_base")

CODE = """
import math
from torch import nn

class Generator(nn.Sequential):
    def __init__(self, latent_dim, data_shape, hidden=4):
        d = math.prod(data_shape)
        super().__init__(nn.Linear(latent_dim, hidden), nn.SiLU(), nn.Linear(hidden, d),
                         nn.Tanh(), nn.Unflatten(1, tuple(data_shape)))

class Fixed(Generator):
    def __init__(self):
        super().__init__(3, (1, 8, 8))

class Energy(nn.Module):
    def __init__(self, pixels=64):
        super().__init__()
        self.layer = nn.Linear(pixels, 1)

    def forward(self, x):
        return self.layer(x.flatten(1))

class Pairs(Energy):
    def forward(self, x):
        return super().forward(x).expand(-1, 2)

class Fussy(nn.Module):
    def __init__(self):
        raise RuntimeError("no licence")

def make():
    return Energy()
"""


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def log_of(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


def same_weights(first: Path, second: Path) -> bool:
    mine, other = (pg.load(folder / "gebm.pt").state_dict() for folder in (first, second))
    return mine.keys() == other.keys() and all(torch.equal(mine[n], other[n]) for n in mine)


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


@pytest.fixture
def small_mnist(monkeypatch: pytest.MonkeyPatch) -> Preset:
    """The preset of MNIST for few images of 8 pixels, which are noise."""
    usual = load_preset("mnist-cpu")
    small = {"width": 2, "data_shape": [1, 8, 8]}
    generator = usual.generator._replace(options={**usual.generator.options, **small})
    energy = usual.energy._replace(options={**usual.energy.options, **small})
    training = replace(usual.training, base_steps=3, refit_steps=2, num_latents=8, boost_steps=2)
    training = replace(training, evaluation_samples=16)
    sizes = {"size": 8, "held_out": 6, "batch_size": 8, "generator": generator, "energy": energy}
    preset = replace(usual, training=training, **sizes)
    monkeypatch.setitem(PRESETS, "mnist-cpu", preset)

    def load(name: str, root: str, *, train: bool, limit: int | None, **more: object) -> ImageSet:
        assert name == "mnist"
        asked.append({"root": root, "limit": limit, **more})
        pixels = torch.from_numpy(noise(60 if train else 20, 1, 8, 8, seed=int(train)))
        return ImageSet(pixels[:limit], (torch.arange(60) % 10)[: len(pixels)][:limit])

    asked: list[dict[str, object]] = []
    monkeypatch.setattr(image_problems, "load_image_set", load)
    monkeypatch.setattr(load, "asked", asked, raising=False)
    monkeypatch.delenv(image_problems.DATA_ROOT, raising=False)
    return preset


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two kinds, with labels, and a test part."""
    path = tmp_path_factory.mktemp("data") / "kinds.npz"
    arrays = {}
    for part, count in (("train", 60), ("test", 24)):
        labels = np.arange(count) % 2
        images = noise(count, 8, 8, seed=count) // 4 + 128 * labels[:, None, None].astype(np.uint8)
        arrays |= {f"{part}_images": images, f"{part}_labels": labels}
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def whole(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training on the archive, mirrored at random, that nothing interrupts."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main([*train(archive), "--out", str(folder)]) == 0
    return folder


def train(path: Path) -> list[str]:
    return ["train", "--data", str(path), "--flip", *NARROW, *STEPS]


@pytest.fixture(autouse=True)
def _without_pictures_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "draw_training", lambda *_: [])


@pytest.fixture
def _quick_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short curve, a quick classifier, and no pictures of chains, which have their own tests."""
    monkeypatch.setattr(evaluation, "CURVE_CHAINS", 20)
    monkeypatch.setattr(judges, "train_classifier", partial(train_classifier, steps=60))
    for name in ("draw_chains", "draw_diagnostics"):
        monkeypatch.setattr(commands, name, lambda *_: [])


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Networks in a module of the folder one is in; its name."""
    name = f"networks_{tmp_path.name}".replace("-", "_").replace("[", "_").replace("]", "_")
    (tmp_path / f"{name}.py").write_text(CODE)
    (tmp_path / f"broken_{name}.py").write_text("import not_to_be_had\n")
    np.save(tmp_path / "images.npy", noise(40, 8, 8))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


# --- presets ------------------------------------------


def test_a_preset_trains_as_by_hand(small_mnist: Preset, tmp_path: Path) -> None:
    argv = ["train", "--preset", "mnist-cpu", "--data-root", str(tmp_path), "--seed", "3"]
    assert main([*argv, "--flip", "--out", str(tmp_path / "run")]) == 0
    torch.manual_seed(3)
    gebm = small_mnist.build()
    pixels = torch.from_numpy(noise(60, 1, 8, 8, seed=1))
    source = torch.Generator().manual_seed(4)
    loader = ImageLoader(pixels[:54], 8, generator=source, flip=True)
    trainer = pg.Trainer(gebm, small_mnist.training, held_out=scale_pixels(pixels[54:]))
    for _ in trainer.fit(loader):
        pass
    found = pg.load(tmp_path / "run" / "gebm.pt").state_dict()
    assert all(torch.equal(found[name], value) for name, value in gebm.state_dict().items())


def test_a_run_of_a_preset_says_what_it_was(small_mnist: Preset, tmp_path: Path) -> None:
    root, run = tmp_path / "root", tmp_path / "run"
    root.mkdir()
    argv = ["train", "--preset", "mnist-cpu", "--data-root", str(root), "--set", "base_lr=0.01"]
    assert main([*argv, "--latent-dim", "7", "--flip", "--out", str(run)]) == 0
    config = json.loads((run / "config.json").read_text())
    assert Preset.from_dict(config["preset"]) == replace(small_mnist, flip=True)
    assert (config["data"], config["data_root"], config["batch_size"]) == ("mnist", str(root), 8)
    assert (config["train"]["base_lr"], config["networks"]["latent_dim"]) == (0.01, 7)
    _, gebm, problem = load_run(str(run))
    assert problem.generator.options.items() <= gebm.base.generator.spec.options.items()
    assert problem.generator.options == {**small_mnist.generator.options, "latent_dim": 7}
    assert problem.images.flip and len(problem.train) == 54 and problem.test.dtype == torch.uint8
    # The root may have moved; images that nothing is learned from are not read.
    root.rename(tmp_path / "moved")
    asked = image_problems.load_image_set.asked
    problem = read_problem(config, str(tmp_path / "moved"))
    assert asked[-1]["root"] == str(tmp_path / "moved") and asked[-1]["limit"] is None
    assert {one["download"] for one in asked} == {False}


def test_unlabelled_training_images_are_read_to_train_only(
    small_mnist: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = image_problems.load_image_set
    monkeypatch.setattr(
        image_problems, "load_image_set", lambda *a, **k: real(*a, **k)._replace(labels=None)
    )
    for training, limit in ((True, None), (False, 7)):
        image_problems.load_preset_images(small_mnist, str(tmp_path), training=training)
        assert real.asked[-1]["limit"] == limit
    assert real.asked[0]["limit"] == image_problems.MOST_TEST


def test_images_are_fetched_when_asked_for(
    small_mnist: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(image_problems.DATA_ROOT, str(tmp_path / "root"))
    argv = ["train", "--preset", small_mnist.name, "--download", "--out", str(tmp_path / "run")]
    assert main(argv) == 0
    assert {(one["download"], one["root"]) for one in image_problems.load_image_set.asked} == {
        (True, str(tmp_path / "root"))
    }


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "--data-root: expected the folder of image sets; got none"),
        (["--data", "moons"], "--preset: expected no other data and no options of theirs; got --d"),
        (["--size", "8"], "got size"),
        (["--base", "nvp"], "got --base nvp"),
        (["--data-root", "ROOT"], "more than 6 training images of shape (1, 8, 8)"),
    ],
)
def test_presets_refuse_in_one_line(
    argv: list[str],
    named: str,
    small_mnist: Preset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    colour = ImageSet(torch.zeros(9, 3, 8, 8, dtype=torch.uint8), None)
    monkeypatch.setattr(image_problems, "load_image_set", lambda *_, **__: colour)
    given = [word.replace("ROOT", str(tmp_path)) for word in argv]
    run = ["train", "--preset", small_mnist.name, "--out", str(tmp_path / "run")]
    assert named in refused(capsys, *run, *given)


def test_a_set_that_is_not_there_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["train", "--preset", "mnist-cpu", "--data-root", str(tmp_path / "none")]
    line = refused(capsys, *argv, "--out", str(tmp_path / "run"))
    assert str(tmp_path / "none") in line and "give --download to fetch it" in line

    def missing(*_: object, **__: object) -> None:
        raise ImportError("pip install 'pyro-gebm[images]'")

    monkeypatch.setattr(image_problems, "load_image_set", missing)
    assert "pyro-gebm[images]" in refused(capsys, *argv, "--out", str(tmp_path / "run"))
    assert "--download: expected a --preset" in refused(capsys, "train", "--download")


# --- folders and arrays ------------------------------------------


@pytest.mark.parametrize("stop", [2, 5])
def test_ctrl_c_resumes_exactly_with_the_loaders_flips(
    stop: int, whole: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = cli_training.record

    def record(info: pg.StepInfo) -> object:
        if info.step + (4 if info.phase == "refit" else 0) == stop:
            signal.raise_signal(signal.SIGINT)
        return plain(info)

    with monkeypatch.context() as patch:
        patch.setattr(cli_training, "record", record)
        assert main([*train(archive), "--out", str(tmp_path)]) == 130
    assert log_of(tmp_path)[-1]["step"] == stop
    torch.manual_seed(99)
    assert main(["train", "--resume", "--out", str(tmp_path)]) == 0
    assert log_of(tmp_path) == log_of(whole) and same_weights(tmp_path, whole)


def test_an_archives_own_test_part_is_kept_for_tests(archive: Path) -> None:
    problem = load_problem(str(archive), 5)
    with np.load(archive) as arrays:
        test, labels = arrays["test_images"], arrays["test_labels"]
        everything = sorted(image.tobytes() for image in arrays["train_images"])
    assert np.array_equal(problem.test[:, 0].numpy(), test)
    assert problem.test_labels.tolist() == labels.tolist()
    held_out = ((problem.held_out + 1) * 127.5).round().to(torch.uint8)
    found = [*problem.train, *held_out]
    assert sorted(image.numpy().tobytes() for image in found) == everything and len(held_out) == 6
    assert problem.train_labels.shape == (54,)
    bright = problem.train.flatten(1).double().mean(1) > 128
    assert torch.equal(bright.long(), problem.train_labels), "labels go with their images"
    assert not torch.equal(load_problem(str(archive), 6).train, problem.train)


def test_a_folder_is_split_in_three_and_brought_to_size(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for place in range(10):
            array = noise(9, 12, 3, seed=place)
            Image.fromarray(array).save(tmp_path / name / f"{place}.png")
    problem = load_problem(str(tmp_path), 0, options={"size": 8, "labels": False})
    sizes = [len(part) for part in (problem.train, problem.held_out, problem.test)]
    assert sizes == [16, 2, 2] and problem.train_labels is None
    assert problem.data_shape == (3, 8, 8) and problem.images.batch_size == 16
    usual = load_preset("mnist-cpu").energy
    assert problem.energy == usual._replace(options={**usual.options, "data_shape": [3, 8, 8]})
    assert load_problem(str(tmp_path), 0, options={"size": 8}).test_labels.shape == (2,)


def test_images_that_have_changed_are_refused(
    whole: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((whole / "config.json").read_text())
    copy = tmp_path / "copy.npz"
    (tmp_path / "gebm.pt").write_bytes((whole / "gebm.pt").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**config, "data": str(copy)}))
    assert str(copy) in refused(capsys, "sample", str(tmp_path))
    with np.load(archive) as arrays:
        changed = dict(arrays)
    changed["train_images"][7, 3, 3] ^= 1
    np.savez(copy, **changed)
    assert "expected the images that the run was trained on" in refused(
        capsys, "sample", str(tmp_path)
    )
    copy.write_bytes(archive.read_bytes())
    assert main(["sample", str(tmp_path), "--kernel", "MALA", *CHAINS]) == 0


@pytest.mark.parametrize(
    ("name", "arrays", "key", "expected"),
    [
        ("a.npy", noise(5, 4), None, False),
        ("a.npy", noise(5), None, False),
        ("a.npy", noise(5, 8, 8), None, True),
        ("a.npy", noise(5, 8, 8, 3), None, True),
        ("a.npy", np.zeros((5, 8, 8)), None, "got float64 of shape (5, 8, 8)"),
        ("a.npy", noise(2, 2, 8, 8, 3), None, "got uint8 of shape (2, 2, 8, 8, 3)"),
        ("a.npz", {"x": np.zeros((5, 2))}, None, False),
        ("a.npz", {"x": noise(5, 8, 8), "y": np.arange(5)}, None, True),
        ("a.npz", {"x": noise(5, 8, 8), "y": np.zeros((5, 2))}, "y", False),
        ("a.npz", {"x": noise(5, 8, 8), "y": np.zeros((5, 2))}, "x", True),
        ("a.npz", {"x": np.zeros((5, 8, 8), np.int64)}, None, "got int64 of shape (5, 8, 8)"),
        ("a.npy", b"not an array", None, False),  # for the reader of tables to refuse
        ("a.csv", b"1,2\n3,4\n", None, False),
        ("a", None, None, True),
    ],
)  # fmt: skip
def test_images_are_told_from_tables_by_their_dimensions(
    name: str, arrays: object, key: str | None, expected: bool | str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if arrays is None:
        path.mkdir()
    elif isinstance(arrays, bytes):
        path.write_bytes(arrays)
    elif isinstance(arrays, dict):
        np.savez(path, **arrays)
    else:
        np.save(path, arrays)
    if isinstance(expected, bool):
        assert image_problems.are_images(str(path), key) is expected
    else:
        with pytest.raises(ValueError, match=r"expected a table \(N, D\) or images") as error:
            image_problems.are_images(str(path), key)
        assert expected in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--data", "moons", "--size", "8"], "no options of images; got size"),
        (["--data", "IMAGES", "--drop", "pH"], "no options of tables; got drop"),
        (["--data", "IMAGES", "--base", "nvp"], "a flow wants vectors"),
        (["--data", "IMAGES", "--key", "cats"], "cats"),
        (["--data", "IMAGES", "--size", "9"], "4, 5, 6 or 7 times a power of 2"),
        (["--data", "FOLDER"], "expected pictures"),
        (["--data", "CUT"], "cut.npz"),
    ],
)
def test_bad_images_are_refused_in_one_line(
    argv: list[str],
    named: str,
    archive: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "cut.npz").write_bytes(archive.read_bytes()[:-100])
    paths = {"IMAGES": archive, "FOLDER": tmp_path / "none", "CUT": tmp_path / "cut.npz"}
    given = [str(paths.get(word, word)) for word in argv]
    assert named in refused(capsys, "train", *given, *STEPS, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run" / "gebm.pt").exists()


# --- scores ------------------------------------------


@pytest.mark.usefixtures("_quick_evaluation")
def test_evaluate_scores_labelled_images_by_a_classifier(whole: Path, tmp_path: Path) -> None:
    argv = ["evaluate", str(whole), "--out", str(tmp_path), "--kernels", "MALA", *CHAINS]
    assert main(argv) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    # Two kinds that are as bright and dark: the classifier cannot fail.
    assert "classifier trained on the training images (test accuracy 1.000)" in metrics["protocol"]
    assert 0 <= metrics["base"]["occupancy_error"] <= 0.5
    pictures = ("samples", "energies", "curves")
    assert all((tmp_path / f"{name}.png").stat().st_size > 0 for name in pictures)


@pytest.mark.usefixtures("_quick_evaluation")
def test_compare_has_the_classes_of_images(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "draw", lambda *_: [])
    argv = ["compare", str(whole), "--out", str(tmp_path), "--kernels", "MALA", "--budget", "40"]
    sizes = ["--num-chains", "12", "--warmup-steps", "5", "--seeds", "0"]
    assert main([*argv, *sizes]) == 0
    found = json.loads((tmp_path / "compare.json").read_text())
    summary = found["kernels"]["MALA"]["summary"]
    assert summary is not None and summary["occupancy_error"] is not None
    assert "classifier" in found["measured"]


def test_large_images_are_classified_by_convolutions() -> None:
    # A bar at the left or at the right; bytes and what they are scaled to are the same.
    labels = torch.arange(64) % 2
    pixels = torch.from_numpy(noise(64, 1, 28, 28)) // 2
    pixels[labels == 0, :, :, :9] += 100
    pixels[labels == 1, :, :, -9:] += 100
    found = train_classifier(pixels[:48], labels[:48], steps=25, feature_dim=5)
    layers = [layer for layer in found.body if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in layers] == [16, 32]
    assert found.body[-2].in_features == 32 * 7 * 7 and found.num_classes == 2
    assert torch.equal(found.predict(pixels[48:]), labels[48:])
    x = scale_pixels(pixels)
    assert torch.equal(found.features(pixels), found.features(x))
    assert found.features(x).shape == (64, 5)
    again = train_classifier(x[:48], labels[:48], steps=25, feature_dim=5)
    assert torch.equal(again.head.weight, found.head.weight)
    small = train_classifier(pixels[..., :20, :20], labels, steps=1)
    assert not any(isinstance(layer, nn.Conv2d) for layer in small.body)


def test_labels_are_found_some_at_a_time() -> None:
    found = train_classifier(torch.randn(9, 1, 28, 28), torch.arange(9) % 3, steps=1)
    sizes, plain = [], found.logits
    found.logits = lambda x: sizes.append(len(x)) or plain(x)
    assert len(found.predict(torch.zeros(2100, 1, 28, 28))) == 2100 and max(sizes) <= 1024


def test_unlabelled_images_are_scored_by_pixels_and_it_says_so(archive: Path) -> None:
    problem = load_problem(str(archive), 0, options={"labels": False})
    judge = build_judge(problem, progress=False)
    assert judge.classifier is None and "Energy distance of pixels" in judge.protocol
    x = scale_pixels(problem.test).flatten(1)
    y = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert judge.scorer.score(y) == pytest.approx(energy_distance(y.flatten(1), x), rel=1e-9)
    floor = judge.scorer.floor(generator=torch.Generator().manual_seed(0))
    assert abs(floor.mean) < 3 * floor.sd / floor.count**0.5 + 0.05


def test_pixels_are_compared_of_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "MOST_COMPARED", 7)
    pixels = torch.from_numpy(noise(20, 1, 4, 4))
    picked = torch.linspace(0, 19, 7).round().long()
    few = scale_pixels(pixels[picked]).flatten(1)
    x = torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert PixelScorer(pixels).score(x) == pytest.approx(energy_distance(x.flatten(1), few))


# --- the user's networks ------------------------------------------


def test_networks_of_ones_own_are_trained_and_come_back_if_trusted(
    code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [f"{code}:Generator", f"{code}:Energy"]
    own = [
        "--generator",
        paths[0],
        "--generator-options",
        '{"latent_dim": 5}',
        "--energy",
        paths[1],
    ]
    argv = ["train", "--data", "images.npy", *own, *STEPS, "--out", "run"]
    assert main(argv) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    given = {"latent_dim": 5, "data_shape": [1, 8, 8]}  # what the constructor asks for
    assert config["networks"]["generator"] == {"name": paths[0], "options": given}
    assert config["networks"]["energy"] == {"name": paths[1], "options": {}}
    del sys.modules[code]
    line = refused(capsys, "sample", "run")
    assert f"--trust {paths[0]} --trust {paths[1]}" in line and code not in sys.modules
    with pytest.raises(ValueError, match=f"{paths[0]}: not imported"):
        pg.load(tmp_path / "run" / "gebm.pt")
    assert code not in sys.modules, "a file alone runs no code"
    assert main(["sample", "run", "--kernel", "MALA", *CHAINS, *trusted(paths)]) == 0
    assert main(["train", "--resume", "--out", "run", *trusted(paths)]) == 0
    assert str(tmp_path) not in sys.path[:-1], "the folder one is in stands in for nothing"


def trusted(paths: list[str]) -> list[str]:
    return [word for path in paths for word in ("--trust", path)]


def test_a_checkpoint_cannot_name_more_than_the_run_is_trusted_with(
    code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", "--data", "images.npy", *STEPS, "--out", "run", "--energy", f"{code}:Energy"]
    assert main(argv) == 0
    (tmp_path / "evil.py").write_text(f"from {code} import Energy\n")
    with pg.nets.trust("evil:Energy"):
        gebm = pg.load(tmp_path / "run" / "gebm.pt", energy=pg.nets.import_network("evil:Energy"))
    pg.save(gebm, tmp_path / "run" / "gebm.pt")
    del sys.modules["evil"]
    line = refused(capsys, "sample", "run", "--trust", f"{code}:Energy")
    assert "evil:Energy: not imported" in line and "evil" not in sys.modules


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--energy", "CODE:Nothing"], "CODE:Nothing: CODE has no Nothing"),
        (["--energy", "no_such_thing.at_all:Energy"], "there is no module no_such_thing"),
        (["--energy", "broken_CODE:Energy"], "importing broken_CODE failed: ModuleNotFoundError"),
        (["--energy", "CODE:make"], "expected a class derived from torch.nn.Module; got function"),
        (["--energy", "CODE:math"], "expected a class derived from torch.nn.Module; got module"),
        (["--energy", "CODE:"], "CODE:: expected an import path, package.module:Name"),
        (["--energy", "unet"], "network name: expected one of"),
        (["--energy", "CODE:Fussy"], "CODE:Fussy: cannot be built with {}: RuntimeError: no lic"),
        (["--energy", "CODE:Pairs"], "CODE:Pairs: fails on data (2, 1, 8, 8): ValueError: energy"),
        (["--energy", "CODE:Energy", "--energy-options", '{"depth": 2}'], "among pixels; got ["),
        (["--energy", "CODE:Energy", "--energy-options", '{"pixels": 9}'], "fails on data (2, 1,"),
        (["--energy-options", "[1]"], 'expected JSON such as {"width": 32}'),
        (["--generator", "CODE:Fixed"], "CODE:Fixed: fails on latents (2, 32): RuntimeError"),
        (["--generator", "CODE:Energy", "--generator-options", '{"pixels": 32}'],
         "CODE:Energy: expected data (2, 1, 8, 8) of latents (2, 32); got (2, 1)"),
        (["--data", "moons", "--base", "nvp", "--generator", "CODE:Fixed"], "expected none with"),
        (["--trust", "CODE"], "CODE: expected an import path"),
    ],
)  # fmt: skip
def test_networks_that_do_not_fit_are_one_line(
    argv: list[str], words: str, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.replace("CODE", code) for word in argv]
    line = refused(capsys, "train", "--data", "images.npy", *given, *STEPS, "--out", "run")
    assert words.replace("CODE", code) in line


def test_latents_of_a_fixed_generator_are_counted_by_an_option(code: str) -> None:
    argv = ["train", "--data", "images.npy", "--generator", f"{code}:Fixed", *STEPS]
    assert main([*argv, "--latent-dim", "3", "--out", "run"]) == 0
    with pg.nets.trust(f"{code}:Fixed"):
        _, gebm, problem = load_run("run")
    assert gebm.latent_dim == problem.latent_dim == 3
    assert isinstance(gebm.base.generator.module, nn.Sequential)


def test_registered_networks_and_other_widths_on_other_data(tmp_path: Path) -> None:
    own = ["--energy", "fourier_energy", "--energy-options", '{"num_features": 8}']
    argv = ["train", "--data", "moons", *own, "--generator-options", '{"hidden": [6]}']
    steps = ["--base-steps", "2", "--refit-steps", "2", "--out", str(tmp_path)]
    assert main([*argv, *steps]) == 0
    _, gebm, problem = load_run(str(tmp_path))
    assert gebm.energy.spec.name == problem.energy.name == "fourier_energy"
    assert gebm.base.generator.spec.options["hidden"] == [6]
