"""GANs as GEBMs: signs, offsets and scales against known laws, calibration, odd shapes."""

import io
import math
from types import SimpleNamespace

import numpy as np
import pyro
import pytest
import torch
from helpers import draws_of, quiet_sample, rng, snapshot, standard_scores
from torch import nn

import pyro_gebm as pg
from pyro_gebm.gan import (
    DiscriminatorAdapter,
    DiscriminatorEnergy,
    GeneratorAdapter,
    calibrate,
    from_gan,
    mh_gan,
)
from pyro_gebm.gan.calibration import calibration_error
from pyro_gebm.metrics import energy_distance
from pyro_gebm.nets import MLPEnergy, MLPGenerator

torch.set_num_threads(1)

SHIFT = 1.0  # data N(1, 1), base N(0, 1): log p/b = x - 1/2


class Affine(nn.Module):
    """slope · x + offset of numbers (B, 1), (B,)."""

    def __init__(self, slope=1.0, offset=0.0, *, then=lambda d: d):
        super().__init__()
        self.slope, self.offset, self.then = slope, offset, then

    def forward(self, x):
        return self.then(self.slope * x[:, 0] + self.offset)


def optimal(alpha=1.0, beta=0.0):
    """alpha · log p/b + beta."""
    return Affine(alpha * SHIFT, -alpha * SHIFT**2 / 2 + beta)


def shifted(num, seed=0):
    return SHIFT + torch.randn(num, 1, generator=rng(seed))


def gan(discriminator, loss="logistic", **options):
    return from_gan(nn.Identity(), discriminator, pg.StandardNormal(1), loss, **options)


# --- sign, scale, offset -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "factor", "log_z"),
    [
        ("logistic", -1.0, 0.0),
        ("hinge", -1.0, 0.0),
        ("wasserstein", -1.0, 0.0),
        ("kale", 1.0, SHIFT**2),  # log E exp(-(x - 1/2)) = 1/2 + 1/2
    ],
)
def test_the_sign_follows_from_the_loss(loss, factor, log_z):
    gebm = gan(optimal(), loss, scale=1.0, seed=0)
    x = torch.linspace(-2, 2, 5)[:, None]
    torch.testing.assert_close(gebm.evaluate_energy(x), factor * (x[:, 0] - 0.5))
    error = 4 * math.sqrt(math.exp(SHIFT**2) - 1) / math.sqrt(8192)
    assert abs(gebm.log_partition.item() - log_z) < (error if loss != "logistic" else 1e-12)


def test_the_optimal_logistic_discriminator_makes_the_model_the_data():
    gebm = gan(optimal())
    z = draws_of(quiet_sample(gebm, kernel="HMC", num_chains=64, num_samples=100))
    assert np.abs(standard_scores(z, SHIFT)).max() < 4
    assert np.abs(standard_scores((z - SHIFT) ** 2, 1.0)).max() < 4


def test_the_log_partition_is_estimated_where_nothing_says_it_is_zero():
    # log E exp(s (x - 1/2)) = s²/2 - s/2
    for loss, scale in (("logistic", 0.5), ("wasserstein", 2.0), ("hinge", 0.5)):
        gebm = gan(optimal(), loss, scale=scale, num_latents=50_000, seed=1)
        error = math.sqrt((math.exp(scale**2) - 1) / 50_000)
        assert abs(gebm.log_partition.item() - (scale**2 - scale) / 2) < 4 * error
    assert gan(optimal(), "hinge", log_partition=0.3).log_partition.item() == pytest.approx(0.3)
    asked = gan(optimal(), log_partition="estimate", seed=1).log_partition.item()
    assert asked != 0 and abs(asked) < 4 * math.sqrt((math.e - 1) / 8192)


def test_probabilities_are_turned_into_logits():
    logit = Affine(3.0, -1.0)
    sure = gan(Affine(3.0, -1.0, then=torch.sigmoid), output="probability")
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    torch.testing.assert_close(sure.evaluate_energy(x), -logit(x))
    # Where the sigmoid rounds to one the energy is infinite, and not a made-up number.
    assert sure.evaluate_energy(torch.tensor([[100.0]])).item() == -math.inf


def test_a_sigmoid_that_is_not_mentioned_is_asked_about():
    judge = nn.Sequential(nn.Linear(1, 1), nn.Sigmoid())
    with pytest.warns(UserWarning, match="Sigmoid"):
        gan(judge)


def test_the_draws_of_the_estimate_are_seeded_and_leave_the_global_stream_alone():
    before = torch.get_rng_state()
    first, again, other = (gan(optimal(), "hinge", seed=s).log_partition for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again and first != other


def test_prior_and_constants_follow_the_generator():
    prior = pg.StandardNormal(2)
    gebm = from_gan(nn.Linear(2, 3).double(), nn.Linear(3, 1).double(), prior)
    assert gebm.log_partition.dtype == gebm.energy.factor.dtype == torch.float64
    assert prior.like.dtype == torch.float32, "the one that was given is as it was"
    assert gebm.potential_fn(torch.zeros(4, 2, dtype=torch.float64)).dtype == torch.float64


def test_networks_are_left_as_they_were():
    generator, judge = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 1), nn.BatchNorm1d(1))
    before = snapshot(judge)
    gebm = from_gan(generator, judge, pg.StandardNormal(2), "hinge")
    quiet_sample(gebm, kernel="HMC", num_chains=4, num_samples=5, warmup_steps=5)
    assert judge.training and all(p.requires_grad for p in judge.parameters())
    assert all(torch.equal(value, before[name]) for name, value in judge.state_dict().items())


@pytest.mark.filterwarnings("ignore:calibrate")
def test_save_and_load_keep_scale_and_constant(tmp_path):
    def networks(seed):
        torch.manual_seed(seed)
        return MLPGenerator(2, (3,), hidden=(4,)), MLPEnergy((3,), hidden=(4,))

    gebm = from_gan(*networks(0), pg.StandardNormal(2), "wasserstein", scale=2.5)
    calibrated = calibrate(gebm, torch.randn(200, 3, generator=rng()), generator=rng()).gebm
    pg.save(gebm, tmp_path / "gan.pt")
    pg.save(calibrated, tmp_path / "calibrated.pt")
    shape = from_gan(*networks(1), pg.StandardNormal(2))
    again = pg.load(tmp_path / "gan.pt", energy=shape.energy)
    x = torch.randn(5, 3, generator=rng(1))
    torch.testing.assert_close(again.log_density_ratio(x), gebm.log_density_ratio(x))
    shape = calibrate(from_gan(*networks(1), pg.StandardNormal(2)), x, generator=rng()).gebm
    again = pg.load(tmp_path / "calibrated.pt", energy=shape.energy)
    torch.testing.assert_close(again.log_density_ratio(x), calibrated.log_density_ratio(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "gan"}, "loss: expected one of logistic"),
        ({"loss": "wasserstein"}, "scale: expected a number"),
        ({"loss": "hinge", "output": "probability"}, "output: expected 'logit'"),
        ({"output": "sigmoid"}, "output: expected one of logit"),
        ({"output": "probability"}, r"expected probabilities in \[0, 1\]"),
        ({"scale": -1.0}, "scale: expected a number"),
        ({"log_partition": "guess"}, "log_partition: expected one of estimate"),
        ({"log_partition": math.nan}, "log_partition: expected a number"),
        ({"num_latents": 1}, "num_latents: expected a whole number"),
        ({"prior": torch.distributions.Normal(0, 1)}, "latent_prior: expected StandardNormal"),
        ({"generator": nn.Conv2d(1, 1, 1)}, "generator: expected one that takes latents.*Adapter"),
        ({"generator": nn.Flatten(0)}, "generator: expected data .*select"),
        ({"generator": torch.tanh}, "generator: expected an nn.Module"),
        ({"discriminator": nn.Conv2d(1, 1, 1)}, "discriminator: expected one that takes the gener"),
        ({"discriminator": nn.Linear(1, 2)}, "discriminator: expected one number .*patch"),
        ({"discriminator": Affine(math.nan)}, "discriminator: expected finite"),
        ({"discriminator": torch.tanh}, "discriminator: expected an nn.Module"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    given = {
        "generator": nn.Identity(),
        "discriminator": Affine(5.0),
        "prior": pg.StandardNormal(1),
    }
    with pytest.raises(ValueError, match=f"(?s){message}"):
        from_gan(**{**given, **options})


# --- calibration -------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "beta"), [(4.0, 1.5), (0.2, -0.7), (1.0, 0.0)])
@pytest.mark.parametrize(("num_real", "num_base"), [(20_000, 20_000), (30_000, 10_000)])
def test_calibration_undoes_slope_and_offset(alpha, beta, num_real, num_base):
    gebm = gan(optimal(alpha, beta))
    found, report = calibrate(gebm, shifted(num_real), num_latents=num_base, generator=rng(1))
    assert abs(report.a - 1 / alpha) < 4 * report.a_error < 0.2 / alpha
    assert abs(report.b + beta / alpha) < 4 * report.b_error < 0.25
    assert abs(report.log_mean_ratio) < 4 * math.sqrt((math.e - 1) / num_base)
    x = torch.linspace(-2, 3, 6)[:, None]
    torch.testing.assert_close(found.log_density_ratio(x), x[:, 0] - 0.5, atol=0.15, rtol=0)
    assert found.base is gebm.base and found.energy.energy is gebm.energy
    if alpha != 1:
        assert report.log_loss < report.log_loss_before - 0.01
        assert report.ece < 0.02 < report.ece_before


def test_calibration_agrees_with_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    metrics = pytest.importorskip("sklearn.metrics")
    gebm = gan(Affine(2.0, 0.4))
    real = 0.5 + 0.8 * torch.randn(1500, 1, generator=rng())
    report = calibrate(gebm, real, generator=rng(1)).calibration
    from pyro_gebm.metrics.partition import base_energies

    base = -base_energies(gebm, 1500, generator=rng(1)).numpy()
    score = np.concatenate([(2 * real[:, 0] + 0.4).double().numpy(), base])
    label = np.repeat([1, 0], 1500)
    oracle = linear_model.LogisticRegression(C=np.inf, tol=1e-10).fit(score[:, None], label)
    assert report.a == pytest.approx(oracle.coef_.item(), rel=1e-5)
    assert report.b == pytest.approx(oracle.intercept_.item(), rel=1e-5)
    probability = oracle.predict_proba(score[:, None])[:, 1]
    assert report.log_loss == pytest.approx(metrics.log_loss(label, probability), rel=1e-8)
    before = 1 / (1 + np.exp(-score))
    assert report.log_loss_before == pytest.approx(metrics.log_loss(label, before), rel=1e-8)
    edges = np.linspace(0, 1, 16)
    gaps = np.histogram(before, edges, weights=before - label)[0]
    assert report.ece_before == pytest.approx(np.abs(gaps).sum() / 3000, rel=1e-6)


def test_standard_errors_are_the_spread_over_repeats():
    gebm, repeats, source = gan(optimal(2.0, 1.0)), 300, rng()
    reports = [
        calibrate(gebm, SHIFT + torch.randn(400, 1, generator=source), generator=source).calibration
        for _ in range(repeats)
    ]
    bound = 4 / math.sqrt(2 * repeats)  # relative error of a standard deviation, four times
    for name, truth in (("a", 0.5), ("b", -0.5)):
        values = np.array([getattr(report, name) for report in reports])
        stated = np.mean([getattr(report, f"{name}_error") for report in reports])
        assert abs(values.std(ddof=1) / stated - 1) < bound
        # The bias of the maximum likelihood is of order 1/n.
        assert abs(values.mean() - truth) < 4 * stated / math.sqrt(repeats) + 0.005


def test_the_calibration_error_counts_every_bin():
    # Bins of 1/15: two of p = 0.5 (gap 0.5 - 1), one of p = 1 (gap 0).
    probability = torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64)
    assert calibration_error(probability, torch.ones(3)) == pytest.approx(1 / 3)


def test_an_overconfident_gan_is_right_after_calibration():
    gebm = calibrate(gan(optimal(3.0)), shifted(20_000), generator=rng(1)).gebm
    z = draws_of(quiet_sample(gebm, kernel="HMC", num_chains=64, num_samples=100))
    means = z.mean((1, 2))
    error = means.std(ddof=1) / 8 + 2 * 0.03  # of the fit: se(a) about 0.01 at slope 3, and b none
    assert abs(means.mean() - SHIFT) < 4 * error
    assert abs(draws_of(quiet_sample(gan(optimal(3.0)))).mean() - 3.0) < 0.2, "before it is not"


def test_calibration_keeps_data_and_streams():
    before = torch.get_rng_state()
    real, gebm = shifted(100), gan(optimal())
    first = calibrate(gebm, real, generator=rng(2)).calibration
    assert first == calibrate(gebm, real, generator=rng(2)).calibration
    assert torch.equal(torch.get_rng_state(), before)


def test_a_discriminator_of_the_wrong_sign_is_told():
    with pytest.warns(UserWarning, match=r"calibrate: the slope is -"):
        calibrate(gan(optimal(-1.0)), shifted(50_000), generator=rng())


@pytest.mark.parametrize(
    ("discriminator", "real", "message"),
    [
        (Affine(0.0, 2.0), torch.zeros(9, 1), "energies that vary"),
        (Affine(1.0), torch.full((9, 1), 99.0), "overlap"),
        (Affine(1.0), torch.full((9, 1), -99.0), "overlap"),
        (Affine(1.0), torch.tensor([[0.0], [math.inf]]), "energy of real data: expected finite"),
        (Affine(1.0), torch.zeros(1, 1), "real: expected at least two"),
    ],
)
def test_calibration_refuses_what_has_no_fit(discriminator, real, message):
    with pytest.raises(ValueError, match=message):
        calibrate(gan(discriminator), real, generator=rng())


# --- without a discriminator -------------------------------------------------------------------


def test_an_energy_alone_improves_a_frozen_generator():
    torch.manual_seed(0)
    generator = MLPGenerator(2, (2,), hidden=(), output="identity")
    nn.init.eye_(generator.layers[0].weight), nn.init.zeros_(generator.layers[0].bias)
    before = snapshot(generator)
    data = torch.tensor([1.0, 0.0]) + 0.6 * torch.randn(4000, 2, generator=rng())
    gebm = pg.GEBM(pg.Base(generator, pg.StandardNormal(2)), MLPEnergy((2,), hidden=(32, 32)))
    trainer = pg.Trainer(gebm, pg.TrainConfig(refit_steps=300, refit_lr=5e-3, evaluate_every=0))
    loader = pg.data.BatchLoader(data[:2000], 256, generator=rng(1))
    assert len(list(trainer.refit_energy(loader))) == 300
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    refined = mh_gan(gebm, 2000, num_proposals=40, generator=rng(2)).x
    base = energy_distance(torch.randn(2000, 2, generator=rng(3)), data[2000:])
    assert energy_distance(refined, data[2000:]) < 0.2 * base


# --- adapters ----------------------------------------------------------------------------------


class Deconvolution(nn.Module):
    """A DCGAN of one layer: (B, 4, 1, 1) -> (B, 3, 4, 4), with batch normalisation."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.ConvTranspose2d(4, 3, 4), nn.BatchNorm2d(3)

    def forward(self, z):
        return torch.tanh(self.norm(self.layer(z)))


def plain(module):
    return module


def saved_script(module):
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(module), stream)
    stream.seek(0)
    return torch.jit.load(stream)


def frozen_script(module):
    return torch.jit.freeze(torch.jit.script(module.eval()))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("loaded", [plain, saved_script, frozen_script])
def test_dcgan_latents_batch_norm_and_torchscript(loaded):
    torch.manual_seed(0)
    generator, judge = Deconvolution(), nn.Conv2d(3, 1, 4)
    expected = Deconvolution().eval()
    expected.load_state_dict(generator.state_dict())
    gebm = from_gan(
        GeneratorAdapter(loaded(generator), latent_shape=(4, 1, 1)),
        loaded(judge),
        pg.StandardNormal(4),
    )
    z = torch.randn(6, 4, generator=rng())
    with gebm.evaluating():
        torch.testing.assert_close(gebm.base(z), expected(z.view(6, 4, 1, 1)))
        torch.testing.assert_close(gebm.latent_energy(z[:1]), gebm.latent_energy(z)[:1])
    site = pyro.poutine.trace(gebm.model).get_trace().nodes["x"]
    assert site["value"].shape == (3, 4, 4)
    idata = quiet_sample(gebm, kernel="HMC", num_chains=4, num_samples=5, warmup_steps=5)
    assert draws_of(idata).shape == (4, 5, 4)
    if loaded is not frozen_script:  # which has neither
        assert gebm.base.generator.generator.training
        assert all(parameter.requires_grad for parameter in gebm.base.parameters())


class Verbose(nn.Module):
    """Answers in the manner of large libraries."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(x)


@pytest.mark.parametrize(
    ("answer", "select"),
    [
        (lambda x: {"sample": x, "loss": x.sum()}, lambda out: out["sample"]),
        (lambda x: (x, x.sum()), lambda out: out[0]),
        (lambda x: SimpleNamespace(sample=x), lambda out: out.sample),
    ],
)
def test_outputs_are_picked(answer, select):
    generator = GeneratorAdapter(Verbose(answer), select=select)
    judge = DiscriminatorAdapter(
        Verbose(lambda x: answer(x[:, :, None].expand(-1, -1, 3))),
        select=lambda out: select(out).mean((1, 2)),
    )
    gebm = from_gan(generator, judge, pg.StandardNormal(1))
    torch.testing.assert_close(
        gebm.latent_energy(torch.tensor([[2.0], [3.0]])), -torch.tensor([2.0, 3])
    )


class Conditional(nn.Module):
    """Adds to its input what a label says."""

    def forward(self, x, label):
        seen.append(label)
        shift = label[:, None] if label.ndim == 1 else label.sum(1, keepdim=True)
        return x + 10.0 * shift


seen = []


def test_a_label_is_passed_on_to_both():
    seen.clear()
    vector = torch.tensor([0.0, 2.0])
    gebm = from_gan(
        GeneratorAdapter(Conditional(), label=3),
        DiscriminatorAdapter(Conditional(), label=vector),
        pg.StandardNormal(1),
    )
    z = torch.zeros(5, 1)
    torch.testing.assert_close(gebm.latent_energy(z), torch.full((5,), -50.0))
    assert seen[-2].dtype == torch.int64 and seen[-2].tolist() == [3] * 5
    assert seen[-1].shape == (5, 2)


def test_a_sampled_class_has_its_share_before_and_after_reweighting():
    shares = torch.tensor([0.5, 0.0, 0.3, 0.2])
    generator = GeneratorAdapter(Conditional(), class_probs=shares)
    # Class k is x around 10 k; the energy of a class is -k/2, whatever x within it.
    judge = Verbose(lambda x: (x[:, 0] / 10).round() / 2)
    gebm = from_gan(generator, judge, pg.StandardNormal(2))
    num = 20_000

    def found(x):
        return torch.bincount((x[:, 0] / 10).round().long(), minlength=4) / num

    wanted = shares * (torch.arange(4) / 2).exp()
    torch.manual_seed(0)
    refined = mh_gan(gebm, num, num_proposals=30, batch_size=num, generator=rng()).x
    pairs = ((gebm.base.sample(num), shares), (refined, wanted))
    for x, weights in pairs:
        exact = weights / weights.sum()
        error = (exact * (1 - exact) / num).sqrt()
        assert ((found(x) - exact).abs() <= 4 * error).all()


@pytest.mark.parametrize(
    "shares",
    [[0.3, 0.3, 0.4], (0.3, 0.3, 0.4), np.array([0.3, 0.3, 0.4]), torch.tensor([0.3, 0.3, 0.4])],
    ids=["list", "tuple", "array", "tensor"],
)
def test_shares_may_be_any_numbers(shares):
    generator = GeneratorAdapter(Conditional(), class_probs=shares)
    # Just left and right of the quantiles 0.3 and 0.6 of N(0, 1).
    z = torch.tensor([[0.0, last] for last in (-0.53, -0.52, 0.25, 0.26)])
    seen.clear()
    generator(z)
    assert seen[-1].tolist() == [0, 1, 1, 2]


class Unlabelled(nn.Module):
    """A network of latents that does not care for labels."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, z, label):
        return self.network(z)


def test_a_latent_short_for_the_class_is_told():
    with_shape = GeneratorAdapter(Conditional(), latent_shape=(3,), class_probs=[0.5, 0.5])
    message = r"expected 4 latents .*one of them for the class; got 3; .*StandardNormal\(4\)"
    with pytest.raises(ValueError, match=message):
        from_gan(with_shape, Affine(), pg.StandardNormal(3))
    plain = GeneratorAdapter(Unlabelled(nn.Linear(3, 1)), class_probs=[0.5, 0.5])
    message = r"of 3 latents the last is the class's, .* got 2: .* StandardNormal\(D \+ 1\)"
    with pytest.raises(ValueError, match=message):
        from_gan(plain, Affine(), pg.StandardNormal(3))
    from_gan(plain, Affine(), pg.StandardNormal(4))


def test_latents_on_a_sphere_are_an_exact_push_forward():
    generator = GeneratorAdapter(nn.Identity(), sphere_radius=3.0)
    # Data: the sphere weighted by exp(x₁): von Mises-Fisher, mean radius · I₁(3)/I₀(3) in 2-D.
    gebm = from_gan(generator, Affine(1.0), pg.StandardNormal(2), "wasserstein", scale=1.0)
    z = draws_of(quiet_sample(gebm, kernel="HMC", num_chains=64, num_samples=200))
    radius = np.linalg.norm(z, axis=-1)
    ratio = (torch.special.i1(torch.tensor(3.0)) / torch.special.i0(torch.tensor(3.0))).item()
    assert abs(standard_scores(3 * z[..., 0] / radius, 3 * ratio)) < 4
    assert abs(standard_scores(radius**2, 2.0)) < 4, "the radius keeps the prior's law"
    with torch.no_grad():
        x = gebm.base(torch.as_tensor(z))
    torch.testing.assert_close(x.norm(dim=-1), torch.full(z.shape[:2], 3.0, dtype=x.dtype))


def test_uniform_latents():
    prior = pg.UniformPrior(1, -1.0, 1.0)
    gebm = from_gan(nn.Identity(), Affine(2.0), prior, "wasserstein", scale=1.0)
    z = draws_of(quiet_sample(gebm, kernel="HMC", num_chains=64, num_samples=200))
    assert np.abs(z).max() <= 1
    # The density exp(2 z) on [-1, 1] has mean coth 2 - 1/2.
    assert abs(standard_scores(z[..., 0], 1 / math.tanh(2) - 0.5)) < 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": 1, "class_probs": torch.ones(1)}, "expected one of them"),
        ({"label": -1}, "label: expected a whole number"),
        ({"label": torch.zeros(3, 2)}, "label: expected .* vector"),
        ({"class_probs": torch.tensor([0.5, 0.4])}, "class_probs: expected shares"),
        ({"class_probs": torch.tensor([1.5, -0.5])}, "class_probs: expected shares"),
        ({"class_probs": 0.5}, r"class_probs: expected shares .* got shape \(\)"),
        ({"class_probs": "halves"}, "class_probs: .* got 'halves'; give a tensor or a list"),
        ({"class_probs": [0.5, None]}, "class_probs: .* give a tensor or a list"),
        ({"class_probs": [0.5, math.nan]}, "class_probs: expected finite numbers"),
        ({"label": [0, 1]}, r"label: expected a whole number .* got \[0, 1\]"),
        ({"label": 1.5}, "label: expected a whole number .* got 1.5"),
        ({"sphere_radius": 0.0}, "sphere_radius: expected"),
        ({"latent_shape": ()}, "latent_shape: expected"),
    ],
)
def test_options_of_the_adapter_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        GeneratorAdapter(nn.Identity(), **options)


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        (GeneratorAdapter(nn.Identity(), latent_shape=(3, 1, 1)), "z: expected 3 latents .* got 2"),
        (GeneratorAdapter(Verbose(lambda z: {"x": z, "y": z})), "dict with 'x', 'y'; give select"),
        (GeneratorAdapter(Verbose(lambda z: (z, z, z))), "tuple of 3; give select"),
        (GeneratorAdapter(Verbose(lambda z: z.sum())), r"rows .* got shape \(\); give select"),
        (GeneratorAdapter(Verbose(lambda z: z[:1])), r"rows .* got shape \(1, 2\)"),
    ],
)
def test_outputs_that_do_not_fit_are_named(generator, message):
    with pytest.raises(ValueError, match=message):
        from_gan(generator, nn.Linear(2, 1), pg.StandardNormal(2))


def test_energies_of_one_unit_in_any_shape():
    for shape in ((4,), (4, 1), (4, 1, 1, 1)):
        energy = DiscriminatorEnergy(Verbose(lambda x, shape=shape: x.reshape(shape)))
        assert energy(torch.ones(4, 1)).tolist() == [-1.0] * 4
