"""FID's features against pytorch-fid's own path, with random weights in the published layout."""

import dataclasses
import hashlib
import importlib
import urllib.request

import numpy as np
import pytest
import scipy.linalg
import torch

from pyro_gebm.metrics.features import load_statistics, save_statistics
from pyro_gebm.metrics.frechet import FeatureStatistics, feature_statistics, frechet_distance
from pyro_gebm.metrics.inception import (
    INCEPTION_FILE,
    INCEPTION_SHA256,
    INCEPTION_URL,
    inception_features,
    score_name,
)


def oracle(name):
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # torchvision of another torch: RuntimeError
        return pytest.skip(f"{name}: {error}")


@pytest.fixture(scope="module", autouse=True)
def no_network():
    """No test may fetch anything; one thread, as elsewhere."""
    torch.set_num_threads(1)

    def refuse(*_, **__):
        raise AssertionError("a download was tried")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(urllib.request, "urlopen", refuse)
        patch.setattr(torch.hub, "download_url_to_file", refuse)
        yield


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_state(network):
    """Weights of a scale at which 94 layers still tell images apart."""
    seeded, state = generator(1), {}
    for name, tensor in network.state_dict().items():
        noise = torch.randn(tensor.shape, generator=seeded)
        if tensor.ndim > 1:
            state[name] = noise * (2 / tensor[0].numel()) ** 0.5
        elif name.endswith("bn.weight"):
            state[name] = 1 + 0.1 * noise
        elif name.endswith("running_var"):
            state[name] = 0.5 + torch.rand(tensor.shape, generator=seeded)
        else:
            state[name] = (0.1 * noise).to(tensor.dtype)
    return state


@pytest.fixture(scope="module")
def room():
    return oracle("pytorch_fid.inception")


@pytest.fixture(scope="module")
def weights(room, tmp_path_factory):
    """A file of random weights of the whole network, in today's format."""
    inception = oracle("torchvision.models.inception").Inception3
    built = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(inception, "load_state_dict", lambda self, _: built.append(self))
        room.fid_inception_v3()
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(random_state(built[0]), path)
    return path


@pytest.fixture(scope="module")
def extractor(weights):
    return inception_features(weights, sha256=None)


def pixels(count, seed, *, channels=3):
    """Smooth images of 8 bits (N, H, W, C), each of its own colour and contrast."""
    seeded = np.random.default_rng(seed)
    coarse = seeded.normal(size=(count, channels, 4, 4)) * seeded.uniform(20, 60, (count, 1, 1, 1))
    coarse = torch.as_tensor(coarse + seeded.uniform(60, 190, (count, channels, 1, 1)))
    fine = torch.nn.functional.interpolate(coarse, size=(24, 32), mode="bicubic")
    return fine.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def to_images(array):
    return torch.as_tensor(array).permute(0, 3, 1, 2).double() / 127.5 - 1


SETS = [pixels(5, seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def theirs(room, weights, tmp_path_factory):
    """Features of both sets as pytorch-fid's own command computes them, from files."""
    scores, pil = oracle("pytorch_fid.fid_score"), oracle("PIL.Image")
    with pytest.MonkeyPatch.context() as patch:
        state = torch.load(weights, weights_only=True)
        patch.setattr(room, "load_state_dict_from_url", lambda *_, **__: state)
        network = room.InceptionV3([room.InceptionV3.BLOCK_INDEX_BY_DIM[2048]])
    features = []
    for number, array in enumerate(SETS):
        folder = tmp_path_factory.mktemp(f"set{number}")
        paths = [folder / f"{index}.png" for index in range(len(array))]
        for path, image in zip(paths, array, strict=True):
            pil.fromarray(image).save(path)
        features.append(scores.get_activations(paths, network, batch_size=5, num_workers=0))
    return features


@pytest.fixture(scope="module")
def ours(extractor):
    return [extractor.embed(to_images(array), batch_size=3) for array in SETS]


def test_features_are_those_of_pytorch_fids_own_path(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == (5, 2048) and mine.dtype == torch.float32
        scale = other.std(axis=0).mean()  # between images: what a score lives on
        assert scale > 0.01 * np.abs(other).mean()
        np.testing.assert_allclose(mine.numpy(), other, rtol=0, atol=1e-4 * scale)


def test_the_distance_is_pytorch_fids(ours, theirs):
    """In three random directions, where five images have covariances of full rank."""
    calculate = oracle("pytorch_fid.fid_score").calculate_frechet_distance
    directions = np.random.default_rng(2).normal(size=(2048, 3)) / 45
    projected = [features @ directions for features in theirs]
    moments = [(f.mean(axis=0), np.cov(f, rowvar=False)) for f in projected]
    try:
        expected = calculate(*moments[0], *moments[1])
    except TypeError:  # SciPy from 1.18 has no sqrtm(disp=...)
        roots = scipy.linalg.sqrtm(moments[0][1] @ moments[1][1])
        expected = ((moments[0][0] - moments[1][0]) ** 2).sum()
        expected += np.trace(moments[0][1] + moments[1][1] - 2 * roots.real)
    exact = [feature_statistics(torch.as_tensor(f)) for f in projected]
    assert frechet_distance(*exact) == pytest.approx(expected, rel=1e-6)
    through = [feature_statistics(f.double() @ torch.as_tensor(directions)) for f in ours]
    assert frechet_distance(*through) == pytest.approx(expected, rel=1e-5)  # float32 features


def test_many_features_of_few_images_have_the_distance_of_their_factors(theirs):
    """Rank 4: tr (C₁C₂)^½ is that of a 5 x 5 matrix, where SciPy's root is good."""
    many = [f[:, :300] for f in theirs]
    a, b = ((f - f.mean(axis=0)) / 2 for f in many)
    root = scipy.linalg.sqrtm((a @ b.T @ b @ a.T).astype(complex))
    shift = many[0].mean(axis=0) - many[1].mean(axis=0)
    expected = shift @ shift + (a**2).sum() + (b**2).sum() - 2 * np.trace(root).real
    statistics = [feature_statistics(torch.as_tensor(f)) for f in many]
    assert frechet_distance(*statistics) == pytest.approx(expected, rel=1e-6)


def test_eight_bits_round_as_files_do(weights, extractor):
    images = to_images(SETS[0][:1])
    noisy = images + 0.9 / 255 * (2 * torch.rand(images.shape, generator=generator()) - 1)
    noisy = noisy.clamp(-1, 1)
    exact = inception_features(weights, sha256=None, eight_bits=False)
    assert torch.equal(extractor.embed(noisy), extractor.embed(images))
    assert not torch.equal(exact.embed(noisy), exact.embed(images))
    torch.testing.assert_close(exact.embed(images), extractor.embed(images), rtol=1e-4, atol=1e-5)


def test_grey_images_are_three_equal_channels(weights, extractor):
    grey = to_images(pixels(1, 3, channels=1)).float()
    found = inception_features(weights, sha256=None, grey=True)
    assert torch.equal(found.embed(grey), extractor.embed(grey.expand(-1, 3, -1, -1)))
    assert found.protocol == extractor.protocol


def test_only_the_published_weights_at_the_standard_protocol_are_fid(weights, extractor):
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert extractor.protocol["weights_sha256"] == digest
    assert score_name(extractor) == "Fréchet distance (Inception)"
    published = {**extractor.protocol, "weights_sha256": INCEPTION_SHA256}
    assert score_name(dataclasses.replace(extractor, protocol=published)) == "FID"
    unrounded = inception_features(weights, sha256=None, eight_bits=False).protocol
    other = {**unrounded, "weights_sha256": INCEPTION_SHA256}
    assert "Fréchet" in score_name(dataclasses.replace(extractor, protocol=other))


def test_the_protocol_goes_into_files(extractor, ours, tmp_path):
    small = FeatureStatistics(5, ours[0][0].double()[:2], torch.eye(2).double())
    save_statistics(tmp_path / "real.npz", small, extractor)
    assert load_statistics(tmp_path / "real.npz", extractor).protocol == extractor.protocol


def test_building_leaves_everything_else_alone(room, weights):
    fetch, state = room.load_state_dict_from_url, torch.get_rng_state()
    digest = hashlib.sha256(weights.read_bytes()).hexdigest().upper()
    assert inception_features(weights, sha256=digest).name == "Inception"
    assert room.load_state_dict_from_url is fetch
    assert torch.equal(torch.get_rng_state(), state)


def test_the_published_files_old_format_is_read(weights, tmp_path, ours):
    old = tmp_path / "old.pth"
    state = torch.load(weights, weights_only=True)
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(state, old, _use_new_zipfile_serialization=False)
    features = inception_features(old, sha256=None).embed(to_images(SETS[0][:1]))
    torch.testing.assert_close(features, ours[0][:1], rtol=1e-4, atol=1e-5)


# --- refusals ------------------------------------------


def test_absent_weights_are_named_with_their_folder_and_source(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        inception_features()
    for part in (INCEPTION_FILE, str(tmp_path / "hub" / "checkpoints"), INCEPTION_URL):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_usual_place_is_searched_and_checked(tmp_path, monkeypatch):
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / INCEPTION_FILE).write_bytes(b"not the weights")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=INCEPTION_SHA256) as caught:
        inception_features()
    assert hashlib.sha256(b"not the weights").hexdigest() in str(caught.value)


class Payload:
    ran = False

    def __reduce__(self):
        return (_run, ())


def _run():
    Payload.ran = True


@pytest.mark.parametrize(
    "content", [b"", b"noise" * 99, Payload(), [1.0], {"fc.weight": torch.ones(2)}]
)
def test_other_files_are_refused_even_unchecked(content, tmp_path, room):
    path, fetch = tmp_path / "bad.pth", room.load_state_dict_from_url
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"bad\.pth: expected"):
        inception_features(path, sha256=None)
    assert not Payload.ran and room.load_state_dict_from_url is fetch


@pytest.mark.parametrize("error", [ImportError("none"), RuntimeError("torchvision::nms")])
def test_a_missing_or_broken_package_is_an_import_error(error, weights, monkeypatch):
    def fail(name):
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ImportError, match=r"pytorch-fid.*pyro-gebm\[images\]"):
        inception_features(weights, sha256=None)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 8, 8), r"\(N, 3, H, W\).*\(2, 1, 8, 8\).*grey"),
        (torch.zeros(2, 3, 8), r"\(2, 3, 8\)"),
        (torch.zeros(2, 3, 8, 8).long(), "int64"),
        (torch.full((2, 3, 8, 8), 1.01), r"\[-1, 1\]; got 1.01\.\.1.01"),
        (torch.full((2, 3, 8, 8), 255.0), "255"),
        (torch.full((2, 3, 8, 8), torch.nan), "nan"),
    ],
)
def test_images_of_another_kind_are_refused(images, message, extractor):
    with pytest.raises(ValueError, match=message):
        extractor.embed(images)
