"""Settings: what is refused, and what ``fit`` makes of them and of a loader."""

import dataclasses
import itertools
import json
import math

import pytest
import torch
from helpers import same, small_gebm, snapshot
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_gebm as pg
from pyro_gebm.training import ChainsConfig, GuardConfig, ReplayConfig

WRONG_COUNTS = [-1, 1.5, True, "3", None]
WRONG_NUMBERS = [-0.1, math.nan, math.inf, True, "1", None]
WRONG_SWITCHES = ["yes", None, 2]
BAD = {
    "base_steps": WRONG_COUNTS,
    "energy_steps": [*WRONG_COUNTS, 0],
    "boost_steps": WRONG_COUNTS,
    "boost_every": WRONG_COUNTS,
    "num_latents": [*WRONG_COUNTS, 0],
    "latents_per_datum": [*WRONG_COUNTS, 0],
    "mode": ["Both", "refit", None, ["both"]],
    "update": ["simultaneous", "", None, ["joint"]],
    "objective": ["KALE", "vae", None, ["kale"]],
    "base_loss": ["kale", "", None, ["amortized"]],
    "energy_lr": [*WRONG_NUMBERS, 0.0],
    "base_lr": [*WRONG_NUMBERS, 0.0],
    "log_partition_lr": [*WRONG_NUMBERS, 0.0],
    "log_partition_update": ["closed", "", None, ["gradient"]],
    "log_partition_memory": [*WRONG_NUMBERS, 1.0],
    "log_partition_start": WRONG_COUNTS,
    "momentum": [*WRONG_NUMBERS, 1.0],
    "schedule": ["linear", "Cosine", None, ["cosine"]],
    "gradient_penalty": WRONG_NUMBERS,
    "gradient_penalty_end": [*WRONG_NUMBERS, 0.0],
    "penalty_every": [*WRONG_COUNTS, 0],
    "penalty_points": ["real", "", None, ["data"]],
    "energy_l2": WRONG_NUMBERS,
    "linear_from": [value for value in WRONG_NUMBERS if value != math.inf],
    "ema_decay": [*WRONG_NUMBERS, 1.0],
    "refit_steps": WRONG_COUNTS,
    "refit_lr": [*WRONG_NUMBERS, 0.0],
    "refit_gradient_penalty": WRONG_NUMBERS,
    "refit_patience": WRONG_COUNTS,
    "evaluate_every": WRONG_COUNTS,
    "evaluation_samples": [*WRONG_COUNTS, 0],
    "precision": ["float64", "half", None, torch.float16],
    "accumulate": [*WRONG_COUNTS, 0],
    "compile": WRONG_SWITCHES,
    "channels_last": WRONG_SWITCHES,
    "chains": [{"steps": 5}, 5, True, ReplayConfig()],
    "replay": [None, {"size": 5}, ChainsConfig()],
    "guard": [None, {"max_rollbacks": 1}, ReplayConfig()],
}
PARTS = {
    "guard": {
        "snapshot_every": [*WRONG_COUNTS, 0],
        "max_rollbacks": [*WRONG_COUNTS, 0],
        "rate_factor": [*WRONG_NUMBERS, 0.0, 1.1],
        "max_energy_gap": [value for value in WRONG_NUMBERS if value != math.inf] + [0.0],
    },
    "chains": {
        "steps": [*WRONG_COUNTS, 0],
        "use_for": ["c", "", None, ["base"]],
        "persistent": WRONG_SWITCHES,
        "target_accept_prob": [*WRONG_NUMBERS, 0.0, 1.0],
    },
    "replay": {
        "size": [*WRONG_COUNTS, 0],
        "steps": [*WRONG_COUNTS, 0],
        "step_size": [*WRONG_NUMBERS, 0.0],
        "noise": WRONG_NUMBERS,
        "restart_probability": [*WRONG_NUMBERS, 1.1],
    },
}
KINDS = {"guard": GuardConfig, "chains": ChainsConfig, "replay": ReplayConfig}

# No value is the default one; what does not go together is apart.
OTHERS = [
    pg.TrainConfig(
        base_steps=0,
        energy_steps=1,
        boost_steps=7,
        boost_every=3,
        num_latents=1,
        latents_per_datum=2,
        update="joint",
        base_loss="amortized",
        energy_lr=1,
        base_lr=1e-9,
        log_partition_lr=0.1,
        log_partition_update="closed_form",
        log_partition_memory=0.5,
        log_partition_start=100,
        momentum=0,
        schedule="constant",
        gradient_penalty=1e-9,
        gradient_penalty_end=10.0,
        penalty_every=1,
        penalty_points="data",
        energy_l2=0.1,
        linear_from=math.inf,
        ema_decay=0.0,
        refit_steps=0,
        refit_lr=1e-3,
        refit_gradient_penalty=0.0,
        refit_patience=3,
        evaluate_every=10,
        evaluation_samples=16,
        precision="bfloat16",
        compile=True,
        channels_last=True,
        guard=GuardConfig(1, 1, 1.0, math.inf),
    ),
    pg.TrainConfig(
        mode="energy", objective="contrastive", replay=ReplayConfig(9, 9, 0.9, 0.0, 1.0)
    ),
    pg.TrainConfig(accumulate=2, chains=ChainsConfig(9, "both", True, 0.9)),
]


# --- values ------------------------------------------


def names(settings):
    return [field.name for field in dataclasses.fields(settings)]


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in BAD.items() for value in values]
)
def test_each_bad_value_is_refused_by_its_name(field, value):
    with pytest.raises(ValueError, match=f"^{field}: expected "):
        pg.TrainConfig(**{field: value})


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [(p, f, value) for p, bad in PARTS.items() for f, values in bad.items() for value in values],
)
def test_so_is_each_of_a_part(part, field, value):
    with pytest.raises(ValueError, match=rf"^{part}\.{field}: expected "):
        KINDS[part](**{field: value})


def test_no_field_is_without_a_bad_value():
    assert list(BAD) == names(pg.TrainConfig)
    assert {part: list(bad) for part, bad in PARTS.items()} == {
        part: names(kind) for part, kind in KINDS.items()
    }


def test_json_round_trip():
    plain = dataclasses.asdict(pg.TrainConfig())
    for part, kind in KINDS.items():
        plain[part] = dataclasses.asdict(kind())
    changed = set()
    for config in OTHERS:
        text = json.dumps(dataclasses.asdict(config))
        assert pg.TrainConfig.from_dict(json.loads(text)) == config
        for field, value in json.loads(text).items():
            if field in KINDS and value is not None:
                changed |= {(field, f) for f in value if value[f] != plain[field][f]}
            elif value != plain[field]:
                changed.add(field)
    every = set(BAD) - set(KINDS) | {(part, f) for part, bad in PARTS.items() for f in bad}
    assert changed - {"chains"} == every


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_step": 3, "lr": 1.0}, r"^settings: .*\['base_step', 'lr'\]"),
        ({"guard": {"every": 3}}, r"^guard: .*\['every'\]"),
        ({"chains": {"steps": 0}}, r"^chains\.steps: expected"),
        ({"replay": 3}, r"^replay: expected ReplayConfig; got 3"),
        ({"base_lr": "fast"}, r"^base_lr: expected"),
    ],
)
def test_settings_from_elsewhere_are_refused_by_their_name(settings, message):
    with pytest.raises(ValueError, match=message):
        pg.TrainConfig.from_dict(settings)


def test_settings_cannot_be_changed_behind_the_checks():
    for config in OTHERS:
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.base_lr = -1.0
        with pytest.raises(ValueError, match=r"^base_lr: "):
            dataclasses.replace(config, base_lr=-1.0)


FOR_ENERGY = ChainsConfig(use_for="energy")
CONTRASTIVE = {"objective": "contrastive", "mode": "energy"}


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        # What has no meaning together,
        ("update", {"update": "joint", "mode": "energy"}),
        ("update", {"update": "joint", "mode": "base"}),
        ("update", {**CONTRASTIVE, "update": "joint"}),
        ("update", {"update": "joint", "accumulate": 2}),
        ("update", {"update": "joint", "chains": ChainsConfig()}),
        ("chains", {"objective": "gan", "chains": ChainsConfig()}),
        ("chains", {"objective": "wgan", "chains": ChainsConfig()}),
        ("chains", {**CONTRASTIVE, "chains": FOR_ENERGY}),
        ("mode", {"objective": "contrastive"}),
        ("mode", {"objective": "contrastive", "mode": "base"}),
        ("gradient_penalty_end", {"gradient_penalty_end": 0}),
        # or would be ignored.
        ("refit_patience", {"refit_patience": 2, "evaluate_every": 0}),
        ("boost_every", {"boost_every": 5}),
        ("base_loss", {"base_loss": "amortized", "objective": "donsker_varadhan"}),
        ("base_loss", {"base_loss": "amortized", "objective": "gan"}),
        ("log_partition_update", {"log_partition_update": "closed_form", "objective": "wgan"}),
        ("log_partition_memory", {"log_partition_memory": 0.5}),
        ("chains", {"mode": "energy", "chains": ChainsConfig(use_for="base")}),
        ("latents_per_datum", {**CONTRASTIVE, "latents_per_datum": 2}),
    ],
)
def test_settings_that_do_not_go_together_are_refused(field, settings):
    with pytest.raises(ValueError, match=f"^{field}: expected "):
        pg.TrainConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_penalty": 0.0, "gradient_penalty_end": 0.0},
        {"log_partition_memory": 0.5, "chains": FOR_ENERGY},  # c follows log Z there
        {"mode": "energy", "chains": FOR_ENERGY},
        {"refit_patience": 2, "evaluate_every": 1},
    ],
)
def test_settings_that_do_go_together_are_not(settings):
    pg.TrainConfig(**settings)


# --- phases and schedules ------------------------------------------


def flat(module):
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def data(seed=1):
    return torch.randn(16, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("base_steps", "refit_steps"), [(5, 3), (0, 3), (5, 0)])
def test_fit_yields_every_step_of_both_phases(base_steps, refit_steps):
    trainer = pg.Trainer(
        small_gebm(), pg.TrainConfig(base_steps=base_steps, refit_steps=refit_steps)
    )
    infos = list(trainer.fit([data()]))
    expected = [("alternate", step + 1, base_steps) for step in range(base_steps)]
    expected += [("refit", step + 1, refit_steps) for step in range(refit_steps)]
    assert [info[:3] for info in infos] == expected
    for info in infos:
        assert not any(figure.requires_grad for figure in info if isinstance(figure, torch.Tensor))
        assert info.base_loss.isnan() == (info.phase == "refit")
        assert 0 < info.importance_ess <= 1
    if refit_steps:
        assert infos[-1].log_partition == trainer.gebm.log_partition


@pytest.mark.parametrize(("energy_steps", "every"), [(2, 2), (1, 1)])
def test_penalty_falls_geometrically_and_is_constant_in_the_refit(monkeypatch, energy_steps, every):
    real, weights = pg.training.passes.slope_penalty, []

    def recorded(*args, **settings):
        value = real(*args, **settings)
        # The slope of the loss in the penalty is the weight that the penalty has.
        value.register_hook(lambda slope: weights.append(slope.item()))
        return value

    monkeypatch.setattr(pg.training.passes, "slope_penalty", recorded)
    config = pg.TrainConfig(
        base_steps=6,
        refit_steps=4,
        energy_steps=energy_steps,
        penalty_every=every,
        gradient_penalty=2.0,
        gradient_penalty_end=0.25,
        refit_gradient_penalty=0.7,
    )
    list(pg.Trainer(small_gebm(), config).fit([data()]))
    falling = [2.0 * 0.125 ** (step / 6) for step in range(6)]
    expected = [every * weight for weight in falling + [0.7] * (4 // every)]
    assert weights == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_rates_fall_to_zero_in_every_phase_or_never(schedule):
    steps = 40
    config = pg.TrainConfig(
        base_steps=steps,
        refit_steps=steps,
        energy_steps=1,
        base_lr=1e-3,
        energy_lr=2e-3,
        refit_lr=3e-3,
        schedule=schedule,
        ema_decay=0.0,
    )
    gebm = small_gebm()
    trainer = pg.Trainer(gebm, config)
    for _ in range(2):  # a second fit starts from full rates again
        positions = [(flat(gebm.base.generator), flat(gebm.energy))]
        for _ in trainer.fit([data() + 2]):
            positions.append((flat(gebm.base.generator), flat(gebm.energy)))
        base, energy = (torch.stack(parts) for parts in zip(*positions, strict=True))
        base, energy = (part.diff(dim=0).abs().amax(1) for part in (base, energy))
        for moves, lr, momentum in (
            (base[:steps], 1e-3, 0.5),
            (energy[:steps], 2e-3, 0.5),
            (energy[steps:], 3e-3, 0.9),
        ):
            assert moves[0] == pytest.approx(lr, rel=1e-3)  # Adam's first step is its rate
            # No step of Adam exceeds this multiple of its rate (Cauchy and Schwarz, β₂ = 0.99).
            largest = (1 - momentum) / math.sqrt(0.01 * (1 - momentum**2 / 0.99))
            last_rate = 0.5 * lr * (1 + math.cos(math.pi * (steps - 1) / steps))
            if schedule == "cosine":
                assert 0 < moves[-1] < largest * last_rate
            else:
                assert moves[-1] > 0.05 * lr


@pytest.mark.parametrize("decay", [0.9, 0.0])
def test_generator_becomes_the_average_of_its_steps_and_stays_it(decay):
    gebm = small_gebm()
    config = pg.TrainConfig(base_steps=20, refit_steps=5, base_lr=0.01, ema_decay=decay)
    average = None
    for info in pg.Trainer(gebm, config).fit([data()]):
        if info.phase == "alternate":
            weights = flat(gebm.base.generator)
            average = weights if info.step == 1 else decay * average + (1 - decay) * weights
        elif info.step == 1:
            taken_over, energy = flat(gebm.base.generator), flat(gebm.energy)
    # 20 roundings of numbers below 1.
    torch.testing.assert_close(taken_over, average, rtol=0, atol=1e-6 if decay else 0)
    assert decay == 0 or (average - weights).abs().max() > 1e-3
    assert torch.equal(flat(gebm.base.generator), taken_over)
    assert not torch.equal(flat(gebm.energy), energy)


# --- loaders ------------------------------------------


def fit(loader, **settings):
    """The weights after 7 steps of each phase, always from the same start."""
    gebm = small_gebm()
    torch.manual_seed(3)
    list(pg.Trainer(gebm, pg.TrainConfig(base_steps=7, refit_steps=7, **settings)).fit(loader))
    return gebm.state_dict()


def test_the_seed_decides_the_weights():
    x = [torch.randn(16, 3)]
    weights, again = fit(x), fit(x)
    assert same(weights, again)
    gebm = small_gebm()
    torch.manual_seed(4)
    list(pg.Trainer(gebm, pg.TrainConfig(base_steps=7, refit_steps=7)).fit(x))
    assert not same(weights, gebm.state_dict())


def test_every_kind_of_loader_gives_the_same_batches():
    x = torch.randn(48, 3)
    expected = fit(itertools.cycle(x.split(16)))
    labelled = DataLoader(
        TensorDataset(x, torch.arange(48)), batch_size=16, generator=torch.Generator()
    )
    assert same(expected, fit(list(x.split(16))))  # started again when it ends
    assert same(expected, fit(labelled))
    assert same(expected, fit([batch.double() for batch in x.split(16)]))
    assert not same(expected, fit([x[:16]]))


@pytest.mark.parametrize("method", ["fit", "refit_energy"])
@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "at least one batch"),
        (itertools.islice([torch.zeros(4, 3)], 1, None), "at least one batch"),
        ([torch.zeros(4, 5)], r"\(3,\).*\(5,\)"),
        ([torch.zeros(4)], r"\(3,\).*\(\)"),
        ([(["a", "b"], torch.zeros(2))], "tensors, .*got list"),
    ],
)
def test_bad_loaders_are_refused_before_anything_changes(loader, message, method):
    gebm = small_gebm()
    before = snapshot(gebm)
    with pytest.raises(ValueError, match=f"^loader: .*{message}"):
        list(getattr(pg.Trainer(gebm), method)(loader))
    assert same(before, gebm.state_dict())


def test_an_iterator_that_ends_is_refused_when_it_ends():
    trainer = pg.Trainer(small_gebm(), pg.TrainConfig(base_steps=5, energy_steps=1))
    infos = trainer.fit(iter([torch.randn(4, 3)] * 2))
    assert [next(infos).step, next(infos).step] == [1, 2]
    with pytest.raises(ValueError, match="used-up iterator"):
        next(infos)


def test_the_shape_check_is_no_step_of_a_batch_norm():
    generator = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    gebm = pg.GEBM(pg.Base(generator, pg.StandardNormal(2)), nn.Linear(3, 1))
    config = pg.TrainConfig(base_steps=2, energy_steps=3, refit_steps=0, ema_decay=0.0)
    list(pg.Trainer(gebm, config).fit([torch.randn(8, 3)]))
    assert generator[1].num_batches_tracked == 2 * (3 + 1)


def test_a_base_without_parameters_is_refit_but_not_fitted():
    gebm = pg.GEBM(pg.Base(nn.Identity(), pg.StandardNormal(3)), nn.Linear(3, 1))
    trainer, before = pg.Trainer(gebm, pg.TrainConfig(refit_steps=2)), snapshot(gebm)
    with pytest.raises(ValueError, match=r"^generator: .*refit_energy"):
        list(trainer.fit([data()]))
    assert same(before, gebm.state_dict())
    list(trainer.refit_energy([data()]))
    assert not torch.equal(gebm.energy.weight, before["energy.weight"])


def test_frozen_layers_stay_as_they_are():
    gebm = small_gebm()
    gebm.base.generator[0].requires_grad_(False)
    gebm.energy[0].requires_grad_(False)
    before = snapshot(gebm)
    list(pg.Trainer(gebm, pg.TrainConfig(base_steps=2, refit_steps=2)).fit([data()]))
    after = gebm.state_dict()
    stayed = {name for name in before if torch.equal(before[name], after[name])}
    frozen = {
        f"{net}.0.{part}" for net in ("base.generator", "energy") for part in ("weight", "bias")
    }
    assert stayed == frozen
