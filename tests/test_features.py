"""Feature extractors, streams of statistics, their files, and the error of the Fréchet distance."""

import json
import math
import pickle

import numpy as np
import pytest
import scipy.linalg
import torch

from pyro_gebm.metrics import train_classifier
from pyro_gebm.metrics.features import (
    FeatureExtractor,
    classifier_features,
    identity_features,
    load_statistics,
    save_statistics,
    weights_sha256,
)
from pyro_gebm.metrics.frechet import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
    frechet_with_error,
)
from pyro_gebm.metrics.moments import StatisticsStream, merge_statistics


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def assert_same(a, b, tolerance):
    assert a.count == b.count
    torch.testing.assert_close(a.mean, b.mean, rtol=tolerance, atol=0)
    torch.testing.assert_close(a.covariance, b.covariance, rtol=0, atol=tolerance)


# --- extractors ------------------------------------------


def tiny_classifier(seed=0):
    images, labels = randn(40, 1, 3, 3).float(), torch.arange(40) % 2
    return train_classifier(images, labels, steps=3, feature_dim=5, seed=seed), images


@pytest.mark.parametrize("batch_size", [1, 7, 40, 1000])
def test_embedding_does_not_depend_on_the_batches(batch_size):
    classifier, images = tiny_classifier()
    extractor = classifier_features(classifier)
    features = extractor.embed(images, batch_size=batch_size)
    torch.testing.assert_close(features, classifier.features(images))
    streamed = extractor.statistics(images, batch_size=batch_size)
    assert_same(streamed, feature_statistics(classifier.features(images)), 1e-6)


def test_embedding_holds_no_graph_and_leaves_the_gradient_mode():
    network = torch.nn.Linear(2, 3)
    grad_modes = []

    def spy(x):
        grad_modes.append(torch.is_grad_enabled())
        return network(x)

    features = FeatureExtractor("linear", {"network": "linear"}, spy).embed(torch.ones(4, 2))
    assert not features.requires_grad and grad_modes == [False] and torch.is_grad_enabled()


def test_data_are_brought_to_the_network():
    seen = []

    def spy(x):
        seen.append(x.device.type)
        return torch.zeros(len(x), 2)

    device = torch.device("meta")
    FeatureExtractor("spy", {"network": "spy"}, spy, device).embed(torch.ones(3, 2), batch_size=2)
    assert seen == ["meta", "meta"]


def test_identity_flattens():
    images = randn(4, 2, 3, 3)
    assert torch.equal(identity_features().embed(images), images.reshape(4, 18))


def test_progress_is_shown_on_request_only(capsys):
    identity_features().embed(torch.zeros(4, 2), batch_size=1)
    assert capsys.readouterr().err == ""
    identity_features().embed(torch.zeros(4, 2), batch_size=1, progress=True)
    assert "4/4" in capsys.readouterr().err


def test_the_hash_is_of_the_weights():
    protocols = [classifier_features(tiny_classifier(seed)[0]).protocol for seed in (0, 0, 1)]
    assert protocols[0] == protocols[1] != protocols[2]
    digest = protocols[0]["weights_sha256"]
    assert isinstance(digest, str) and len(digest) == 64
    network = torch.nn.BatchNorm1d(2)
    before = weights_sha256(network)
    network.running_mean[0] += 1e-7  # a buffer, and a scalar buffer beside it
    assert weights_sha256(network) != before
    assert weights_sha256(network.double()) != weights_sha256(network.float())


# --- streams ------------------------------------------


@pytest.mark.parametrize("mean", [0.0, 1e6])
def test_a_stream_has_the_statistics_of_the_whole(mean):
    features = randn(1000, 6) * torch.tensor([0.01, 0.1, 1, 1, 2, 3]).double() + mean
    stream = StatisticsStream()
    for batch in features.split([1, 0, 300, 2, 650, 47]):
        stream.update(batch)
    assert stream.count == 1000
    assert_same(stream.statistics(), feature_statistics(features), 1e-10)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_streams_of_several_processes_merge(order):
    features = randn(500, 4) + 1e6
    streams = []
    for part in features.split([1, 0, 320, 179]):
        stream = StatisticsStream()
        stream.update(part)
        streams.append(pickle.loads(pickle.dumps(stream)))
    total = StatisticsStream()
    for index in order:
        total.merge(streams[index])
    assert [s.count for s in streams] == [1, 0, 320, 179]
    assert_same(total.statistics(), feature_statistics(features), 1e-10)


def test_a_merged_stream_and_its_source_go_their_own_ways():
    first, total = StatisticsStream(), StatisticsStream()
    first.update(randn(5, 2))
    total.merge(first)
    total.update(randn(7, 2, seed=1))
    assert_same(first.statistics(), feature_statistics(randn(5, 2)), 1e-14)
    total.merge(StatisticsStream())
    assert total.count == 12


def test_statistics_merge():
    a, b = randn(30, 4) + 1e6, 2 * randn(70, 4, seed=1) + 1e6
    merged = merge_statistics(feature_statistics(a), feature_statistics(b))
    assert_same(merged, feature_statistics(torch.cat([a, b])), 1e-10)


def test_a_refused_batch_leaves_the_stream_as_it_was():
    stream = StatisticsStream()
    stream.update(randn(5, 2))
    for bad in (torch.tensor([[math.nan, 0.0]]), torch.zeros(2, 3), torch.zeros(2)):
        with pytest.raises(ValueError):
            stream.update(bad)
    assert_same(stream.statistics(), feature_statistics(randn(5, 2)), 1e-15)


# --- files ------------------------------------------


def test_statistics_come_back_bit_for_bit(tmp_path):
    extractor = FeatureExtractor("ours", {"network": "n", "width": 3, "scale": 0.1}, lambda x: x)
    statistics = feature_statistics(randn(9, 3))
    save_statistics(tmp_path / "real.npz", statistics, extractor)
    found = load_statistics(tmp_path / "real.npz", extractor)
    assert found.statistics.count == 9 and type(found.statistics.count) is int
    assert torch.equal(found.statistics.mean, statistics.mean)
    assert torch.equal(found.statistics.covariance, statistics.covariance)
    assert (found.name, found.protocol) == ("ours", extractor.protocol)
    assert [path.name for path in tmp_path.iterdir()] == ["real.npz"]
    with np.load(tmp_path / "real.npz", allow_pickle=False) as file:  # as pytorch-fid reads it
        np.testing.assert_array_equal(file["sigma"], statistics.covariance)
        assert json.loads(str(file["protocol"])) == extractor.protocol


def test_published_files_hold_neither_count_nor_protocol(tmp_path):
    statistics = feature_statistics(randn(9, 3))
    arrays = {"mu": statistics.mean.float().numpy(), "sigma": statistics.covariance.numpy()}
    np.savez_compressed(tmp_path / "published.npz", **arrays)
    found = load_statistics(tmp_path / "published.npz")
    assert found.name is None and found.protocol is None and found.statistics.count is None
    assert found.statistics.mean.dtype == torch.float64
    assert frechet_distance(found.statistics, statistics) < 1e-12
    with pytest.raises(ValueError, match=r"published.npz: .*identity.*got none"):
        load_statistics(tmp_path / "published.npz", identity_features())
    with pytest.raises(ValueError, match=r"b: .*count.*None"):
        merge_statistics(statistics, found.statistics)
    save_statistics(tmp_path / "again.npz", found.statistics, identity_features())
    assert load_statistics(tmp_path / "again.npz").statistics.count is None


def test_another_protocol_is_refused_by_name(tmp_path):
    one, two = (classifier_features(tiny_classifier(seed)[0]) for seed in (0, 1))
    save_statistics(tmp_path / "real.npz", feature_statistics(randn(9, 5)), one)
    load_statistics(tmp_path / "real.npz", one)
    with pytest.raises(ValueError, match="protocol") as caught:
        load_statistics(tmp_path / "real.npz", two)
    for extractor in (one, two):
        assert extractor.protocol["weights_sha256"] in str(caught.value)


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    save_statistics(tmp_path / "real.npz", feature_statistics(randn(9, 3)), identity_features())
    before = (tmp_path / "real.npz").read_bytes()

    def full_disk(file, **_):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_statistics(tmp_path / "real.npz", feature_statistics(randn(8, 3)), identity_features())
    assert (tmp_path / "real.npz").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def damaged(kind, path):
    arrays = {"mu": np.zeros(2), "sigma": np.eye(2)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(arrays))
    elif kind == "object array":
        np.savez(path, mu=np.array([{}, {}], dtype=object), sigma=np.eye(2))
    elif kind == "truncated":
        np.savez(path, **arrays)
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "bit flip":
        np.savez(path, **arrays)
        data = bytearray(path.read_bytes())
        data[data.index(np.float64(1.0).tobytes()) + 6] ^= 1
        path.write_bytes(bytes(data))
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        np.savez(path, **{**arrays, **kind})


@pytest.mark.parametrize(
    "kind",
    [
        "pickle",
        "object array",
        "truncated",
        "bit flip",
        "empty",
        {"mu": np.zeros(3)},
        {"mu": np.array([0.0, math.nan])},
        {"sigma": np.array([["a", "b"], ["c", "d"]])},
        {"count": np.array(1)},
        {"protocol": np.array("{")},
        {"protocol": np.array("[]"), "name": np.array("x")},
    ],
)
def test_a_damaged_file_is_refused_by_name(kind, tmp_path):
    damaged(kind, tmp_path / "bad.npz")
    with pytest.raises(ValueError, match=r"bad\.npz"):
        load_statistics(tmp_path / "bad.npz")


class Payload:
    ran = False

    def __reduce__(self):
        return (_run, ())


def _run():
    Payload.ran = True
    return 0.0


@pytest.mark.parametrize("in_npz", [False, True])
def test_no_code_in_a_file_is_run(in_npz, tmp_path):
    path = tmp_path / "bad.npz"
    if in_npz:
        np.savez(path, mu=np.array([Payload(), Payload()], dtype=object), sigma=np.eye(2))
    else:
        path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match=r"bad\.npz"):
        load_statistics(path)
    assert not Payload.ran


def test_an_absent_file_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        load_statistics(tmp_path / "none.npz")


# --- Fréchet distance and its error ------------------------------------------


def exact_sample(mean, covariance, count, seed):
    """Features whose sample mean and covariance are as given."""
    noise = randn(count, len(mean), seed=seed)
    white = noise - noise.mean(dim=0)
    white = white @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(white.T))).T
    return white @ torch.linalg.cholesky(covariance).T + mean


@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_gaussians_by_streams_have_the_closed_form(mean):
    factors = randn(2, 5, 5, seed=3)
    c1, c2 = factors @ factors.mT + torch.eye(5).double()
    m1, m2 = randn(2, 5, seed=4) + mean
    root = torch.as_tensor(scipy.linalg.sqrtm(c1 @ c2)).real
    expected = ((m1 - m2) ** 2).sum() + (c1 + c2 - 2 * root).trace()
    statistics = []
    for seed, (m, c) in enumerate([(m1, c1), (m2, c2)]):
        stream = StatisticsStream()
        for batch in exact_sample(m, c, 300, seed).split(64):
            stream.update(batch)
        statistics.append(stream.statistics())
    assert frechet_distance(*statistics) == pytest.approx(expected.item(), abs=1e-8)


def monte_carlo(shift, scale, *, count=400, width=3, sets=100):
    """Distances of ``sets`` independent samples to N(0, 1), with what is said of each."""
    exact = FeatureStatistics(None, torch.zeros(width).double(), torch.eye(width).double())
    seeded = generator(7)
    found = [
        frechet_with_error(
            torch.randn(count, width, generator=seeded) * scale + shift,
            exact,
            repeats=40,
            generator=seeded,
        )
        for _ in range(sets)
    ]
    truth = width * (shift**2 + (scale - 1) ** 2)
    estimates, errors, biases = torch.tensor([f[:3] for f in found], dtype=torch.float64).T
    return truth, estimates, errors.square().mean().sqrt(), biases


def test_the_error_is_the_spread_over_independent_samples():
    truth, estimates, error, biases = monte_carlo(0.5, 1.2)
    # The spread of 100 draws is known to 1/√200 = 7 %.
    assert error / estimates.std() == pytest.approx(1, abs=0.28)
    mean_error = estimates.std() / 100**0.5
    assert abs(estimates.mean() - biases.mean() - truth) < 4 * mean_error


def test_for_one_law_the_error_is_too_large_and_the_bias_is_all():
    _, estimates, error, biases = monte_carlo(0.0, 1.0)
    assert 1.3 < error / estimates.std() < 2.2  # √3 for the mean's part
    assert biases.mean() == pytest.approx(estimates.mean().item(), rel=0.2)
    assert estimates.mean() > 10 * estimates.std() / 100**0.5  # though the distance is 0


def test_the_estimate_is_the_plain_distance_and_follows_the_generator_only():
    features, reference = randn(50, 3), feature_statistics(randn(60, 3, seed=1) + 1)
    state = torch.get_rng_state()
    first, again, other = (
        frechet_with_error(features, reference, repeats=5, generator=generator(seed))
        for seed in (0, 0, 1)
    )
    assert first == again and first.repeats == 5 and first.standard_error != other.standard_error
    plain = frechet_distance(feature_statistics(features), reference)
    assert first.estimate == other.estimate == plain
    assert torch.equal(torch.get_rng_state(), state)


# --- refusals ------------------------------------------

PLAIN = FeatureExtractor("flat", {"network": "flat"}, lambda x: x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FeatureExtractor("", {"network": "n"}, abs), "name and a protocol.*''"),
        (lambda: FeatureExtractor("n", {}, abs), r"protocol.*\{\}"),
        (lambda: FeatureExtractor("n", {"scale": math.nan}, abs), "finite float.*nan"),
        (lambda: FeatureExtractor("n", {"flag": True}, abs), "True"),
        (lambda: PLAIN.embed(torch.zeros(3, 2, 2)), r"flat: .*\(3, K\).*\(3, 2, 2\)"),
        (lambda: PLAIN.embed(torch.zeros(0, 2)), r"N >= 1.*\(0, 2\)"),
        (lambda: PLAIN.embed(torch.zeros(3, 2), batch_size=0), "batch_size: .*got 0"),
        (lambda: PLAIN.statistics(torch.zeros(1, 2)), "two features.*got 1"),
        (lambda: StatisticsStream().statistics(), "two features; got none"),
        (lambda: StatisticsStream().update(torch.zeros(2, 0)), r"K >= 1.*\(2, 0\)"),
        (
            lambda: frechet_with_error(
                randn(5, 2), feature_statistics(randn(5, 3)), generator=generator()
            ),
            "frechet_with_error: .*2 and 3",
        ),
        (
            lambda: frechet_with_error(
                randn(5, 3), feature_statistics(randn(5, 3)), repeats=1, generator=generator()
            ),
            "repeats: .*got 1",
        ),
    ],
)
def test_refusals_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
