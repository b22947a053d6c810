"""Tables of real data: what is read, what is refused and where, what a model is given."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_gebm.data.preprocessing import (
    dequantized,
    drop_correlated,
    prepare,
    rounding_steps,
    split_rows,
)
from pyro_gebm.data.scaling import fit_standardization, fit_whitening
from pyro_gebm.data.tables import Table, read_table
from pyro_gebm.data.uci import load_uci

torch.set_num_threads(1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def written(folder: Path, text: str, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# --- reading ------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1,2\n3,4.5\n",
        "a;b\n1;2\n3;4.5\n",
        "a\tb\r\n1\t2\r\n3\t4.5\r\n",
        "a|b\n1|2\n3|4.5",
        "a b\n1   2\n 3 4.5\n",
        "a, b\n1, 2\n3, 4.5\n",
        "a ; b\n1 ; 2\n3 ; 4.5\n",
        '\ufeff"a";"b"\n"1";2\n\n3;"4.5"\n\n',
        "a,b\n1e0,+2\n3.,45e-1\n",
    ],
)
def test_delimiters_quotes_and_blank_lines_are_found(tmp_path: Path, text: str) -> None:
    table = read_table(written(tmp_path, text))
    assert table.columns == ("a", "b")
    assert table.values.dtype == torch.float64
    assert table.values.tolist() == [[1.0, 2.0], [3.0, 4.5]]


def test_names_with_delimiters_in_them_do_not_mislead(tmp_path: Path) -> None:
    text = '"fixed acidity";"free, bound; total"\n7.4;0.7\n7.8;0.88\n'
    table = read_table(written(tmp_path, text))
    assert table.columns == ("fixed acidity", "free, bound; total")
    assert table.values.tolist() == [[7.4, 0.7], [7.8, 0.88]]


def test_a_header_is_found_or_given(tmp_path: Path) -> None:
    bare = written(tmp_path, "1,2\n3,4\n")
    assert read_table(bare).columns == ("0", "1")
    assert len(read_table(bare).values) == 2
    years = read_table(bare, header=True)
    assert (years.columns, years.values.tolist()) == (("1", "2"), [[3.0, 4.0]])
    with pytest.raises(ValueError, match=r"row 1 \(line 1\), column '0': .* got 'a'"):
        read_table(written(tmp_path, "a,b\n1,2\n"), header=False)
    # Half a header is none: its other half are data, and the names are refused as such.
    with pytest.raises(ValueError, match=r"row 1 \(line 1\), column '1': .* got 'b'"):
        read_table(written(tmp_path, "1,b\n1,2\n"))


def test_one_column_needs_no_delimiter(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "height\n1.5\n2.5\n"))
    assert (table.columns, table.values.tolist()) == (("height",), [[1.5], [2.5]])


def test_columns_are_kept_in_the_order_asked_for_and_others_may_hold_anything(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, "name,a,b,note\nx,1,2,\ny,3,4,NA\n")
    table = read_table(path, keep=["b", 1])
    assert (table.columns, table.values.tolist()) == (("b", "a"), [[2.0, 1.0], [4.0, 3.0]])
    assert read_table(path, drop=[0, -1]).columns == ("a", "b")
    assert read_table(path, keep=["a", "b"], drop=["a"]).columns == ("b",)
    for columns in (["c"], [4], [-5], ["nothing"]):
        with pytest.raises(ValueError, match="expected one column among name, a, b, note"):
            read_table(path, keep=columns)
    with pytest.raises(ValueError, match="different columns"):
        read_table(path, keep=["a", 1])
    with pytest.raises(ValueError, match="at least one column to stay"):
        read_table(path, keep=["a"], drop=["a"])


@pytest.mark.parametrize("bad", ["", "NA", "?", "nan", "inf", "1,5", "1_000", "0x1F", "twelve"])
def test_what_is_no_finite_number_is_named_with_its_place(tmp_path: Path, bad: str) -> None:
    path = written(tmp_path, f'a;pH\n1;2\n\n3;"{bad}"\n5;6\n')
    with pytest.raises(ValueError, match=r"row 2 \(line 4\), column 'pH'") as refusal:
        read_table(path)
    assert (repr(bad) if bad else "nothing") in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert read_table(path, drop=["pH"]).values.tolist() == [[1.0], [3.0], [5.0]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "empty"),
        ("\n \n", "empty"),
        ("a,b\n", "at least one row"),
        ("a,b\n1,2\n3\n", r"row 2 \(line 3\): expected 2 fields; got 1"),
        ("a,b\n1,2\n3,4,5\n", r"row 2 \(line 3\): expected 2 fields; got 3"),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_table(written(tmp_path, text), delimiter=",")


def test_other_refusals(tmp_path: Path) -> None:
    path = written(tmp_path, "a,b\n1,2\n")
    with pytest.raises(ValueError, match="one character"):
        read_table(path, delimiter=",,")
    with pytest.raises(ValueError, match="key: expected None"):
        read_table(path, key="x")
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "nowhere.csv")
    (tmp_path / "latin.csv").write_bytes(b"\xe9,b\n1,2\n")
    with pytest.raises(ValueError, match="UTF-8"):
        read_table(tmp_path / "latin.csv")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, bool])
def test_arrays_of_numpy(tmp_path: Path, dtype: type) -> None:
    array = np.array([[0, 1, 1], [1, 0, 1]], dtype=dtype)
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "one.npz", data=np.asfortranarray(array))
    np.savez(tmp_path / "two.npz", x=array, y=array[:, 0])
    for table in (
        read_table(tmp_path / "x.npy"),
        read_table(tmp_path / "one.npz"),
        read_table(tmp_path / "two.npz", key="x"),
    ):
        assert table.columns == ("0", "1", "2")
        assert table.values.tolist() == array.astype(float).tolist()
    assert read_table(tmp_path / "two.npz", key="y").values.shape == (2, 1)
    dropped = read_table(tmp_path / "x.npy", drop=[1])
    assert (dropped.columns, dropped.values.tolist()) == (("0", "2"), [[0.0, 1.0], [1.0, 1.0]])


def test_arrays_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    for array in (np.zeros(()), np.zeros((2, 2, 2)), np.zeros((2, 2), complex), np.array([["a"]])):
        np.save(path, array)
        with pytest.raises(ValueError, match="expected real numbers"):
            read_table(path)
    np.save(path, np.array([[1.0, 2.0], [3.0, np.nan], [np.inf, 1.0]]))
    with pytest.raises(ValueError, match=r"row 1, column 1 \(both from 0\).*nan \(2 in all\)"):
        read_table(path)
    np.save(path, np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="pickle"):
        read_table(path)
    np.savez(tmp_path / "two.npz", x=np.zeros((1, 1)), y=np.zeros((1, 1)))
    for key in (None, "z"):
        with pytest.raises(ValueError, match="key: expected one of x, y"):
            read_table(tmp_path / "two.npz", key=key)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="not an array"):
        read_table(path)


# --- scales and splits ------------------------------------------


def skewed(num: int = 400, seed: int = 0) -> torch.Tensor:
    z = torch.randn(num, 3, generator=rng(seed), dtype=torch.float64)
    mix = torch.tensor([[2.0, 0.5, 0.0], [0.0, 30.0, 1.0], [0.0, 0.0, 0.1]], dtype=torch.float64)
    return z.exp() @ mix + torch.tensor([5.0, -100.0, 0.0])


@pytest.mark.parametrize("fit", [fit_standardization, fit_whitening])
def test_maps_go_back_and_tell_volume(fit) -> None:
    x = skewed()
    scaling = fit(x)
    y = scaling.apply(x)
    assert torch.allclose(y.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(y.square().mean(0), torch.ones(3, dtype=torch.float64))
    if fit is fit_whitening:
        assert torch.allclose(y.T @ y / len(y), torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(scaling.invert(y), x, rtol=1e-10)
    jacobian = torch.autograd.functional.jacobian(lambda row: scaling.apply(row[None])[0], x[0])
    assert scaling.log_det == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), abs=1e-12)


def test_likelihoods_come_back_to_the_datas_units() -> None:
    # The density of a Gaussian at x is that of its scaled self at y, times |det dy/dx|.
    x = skewed(2000)
    truth = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0))
    scaling = fit_whitening(x)
    standard = torch.distributions.Normal(0.0, 1.0)
    nll = -standard.log_prob(scaling.apply(x)).sum(1).mean()
    assert float(nll) - scaling.log_det == pytest.approx(float(-truth.log_prob(x).mean()))


def test_constant_and_dependent_columns_are_refused() -> None:
    x = skewed()
    x[:, 1] = 7.3
    for fit in (fit_standardization, fit_whitening, rounding_steps):
        with pytest.raises(ValueError, match=r"column 1 .* 7\.3 400 times"):
            fit(x)
    x[:, 1] = x[:, 0] - 2 * x[:, 2]
    with pytest.raises(ValueError, match="combination"):
        fit_whitening(x)
    with pytest.raises(ValueError, match="two rows"):
        fit_standardization(x[:1])
    with pytest.raises(ValueError, match="combination"):
        fit_whitening(skewed(3))


def test_splits_deal_every_row_once_and_by_seed() -> None:
    x = torch.arange(101.0)[:, None]
    parts = split_rows(x, test=0.2, held_out=0.1, generator=rng(3))
    assert [len(part) for part in parts] == [71, 10, 20]
    assert torch.cat(list(parts)).flatten().sort().values.tolist() == list(range(101))
    again = split_rows(x, test=0.2, held_out=0.1, generator=rng(3))
    other = split_rows(x, test=0.2, held_out=0.1, generator=rng(4))
    assert torch.equal(parts.test, again.test) and not torch.equal(parts.test, other.test)
    for shares in ({"test": 0.0}, {"held_out": 1.5}, {"test": 0.6, "held_out": 0.6}):
        with pytest.raises(ValueError, match="expected"):
            split_rows(x, **shares, generator=rng())


def test_dequantisation_is_uniform_over_one_step() -> None:
    x = torch.tensor([[1.0, 10.0], [2.0, 10.5], [3.0, 11.0], [7.0, 10.5]]).repeat(5000, 1)
    steps = rounding_steps(x)
    assert steps.tolist() == [1.0, 0.5]  # the median of gaps 1, 1, 4
    noise = (dequantized(x, steps, generator=rng()) - x) / steps
    assert float(noise.min()) >= -0.5 and float(noise.max()) <= 0.5
    # A uniform's variance is 1/12, known to √(1/180 N).
    assert float(noise.var()) == pytest.approx(1 / 12, abs=4 * math.sqrt(1 / 180 / noise.numel()))


# --- preprocessings ------------------------------------------


def table_of(values: torch.Tensor) -> Table:
    return Table(values, tuple("abc"))


@pytest.mark.parametrize("noisy", [False, True])
def test_the_test_part_does_not_move_what_the_model_sees(noisy: bool) -> None:
    # Planted: a scale fitted on all rows.
    x = skewed()
    x = (10 * x).round() / 10 if noisy else x
    before = prepare(table_of(x), seed=5, dequantize=noisy)
    order = torch.randperm(len(x), generator=rng(5))
    moved = x.clone()
    moved[order[-40:]] = moved[order[-40:]] + 1000
    after = prepare(table_of(moved), seed=5, dequantize=noisy)
    assert torch.equal(before.train, after.train) and torch.equal(before.held_out, after.held_out)
    assert not torch.allclose(before.test, after.test)
    assert [len(part) for part in before[:3]] == [320, 40, 40]
    assert before.train.dtype == torch.float32
    assert torch.allclose(before.train.mean(0), torch.zeros(3), atol=1e-6)
    assert torch.allclose(before.train.square().mean(0), torch.ones(3), atol=1e-5)
    back = before.scaling.invert(before.test)
    step = rounding_steps(x[order[:320]]) if noisy else torch.zeros(3)
    assert bool(((back - x[order[-40:]]).abs() <= 0.5 * step + 1e-4).all())


def theirs(data: np.ndarray, seed: int, dequantise: bool) -> tuple[np.ndarray, ...]:
    """The authors' steps, written down anew from what they do, in numpy."""
    np.random.seed(seed)  # noqa: NPY002
    data = data.copy()
    np.random.shuffle(data)  # noqa: NPY002
    if dequantise:
        for d in range(data.shape[1]):
            gap = np.median(np.diff(np.unique(data[:, d])))
            data[:, d] = data[:, d] + gap * (2 * np.random.rand(len(data)) - 1)  # noqa: NPY002
    data = data[:, np.random.permutation(data.shape[1])]  # noqa: NPY002
    data = data - data.mean(0)
    covariance = data[:10_000].T @ data[:10_000] / min(len(data), 10_000)
    num_test = int(len(data) * 0.1)
    rest = data[:-num_test]
    num_valid = min(int(len(rest) * 0.1), 1000)
    return rest[:-num_valid], rest[-num_valid:], data[-num_test:], covariance


@pytest.mark.parametrize(("rows", "noisy"), [(400, False), (400, True), (12_000, False)])
def test_gebm_preprocessing_is_the_authors(rows: int, noisy: bool) -> None:
    x = skewed(rows).round(decimals=1)
    prepared = prepare(table_of(x), "gebm", seed=1, dequantize=noisy)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    prepare(table_of(x), "gebm", seed=2, dequantize=noisy)
    assert np.array_equal(state, np.random.get_state()[1]), "the global stream is left alone"  # noqa: NPY002
    train, held_out, test, covariance = theirs(x.numpy(), 1, noisy)
    for ours, expected in zip(prepared[:3], (train, held_out, test), strict=True):
        # Whitening is unique up to an orthogonal map: lengths in the metric of the covariance.
        lengths = np.einsum("nd,nd->n", expected @ np.linalg.inv(covariance), expected)
        assert np.allclose(ours.double().square().sum(1).numpy(), lengths, rtol=1e-4)
    assert prepared.scaling.log_det == pytest.approx(
        -0.5 * np.linalg.slogdet(covariance)[1], abs=1e-7
    )
    everything = torch.cat(list(prepared[:3])).double()
    if rows <= 10_000:
        assert torch.allclose(
            everything.T @ everything / rows, torch.eye(3, dtype=torch.float64), atol=1e-5
        )
    assert sorted(prepared.columns) == ["a", "b", "c"]


def test_maf_preprocessing_keeps_the_files_order_and_its_oddities() -> None:
    x = skewed(200) + 200
    x[7, 0] = -150  # an outlier by the rule for MiniBooNE's first column
    x[:6, 1] = -1e5  # the smallest value recurs: out
    x[:50, 2] = x[:, 2].max()  # a larger value recurs: nobody looks
    x[100:105, 2] = x[:, 2].min() - 1  # the smallest recurs five times: not yet too often
    prepared = prepare(table_of(x), "maf")
    assert prepared.columns == ("a", "c")
    kept = torch.cat([x[:7], x[8:]])[:, [0, 2]]
    # 199 rows: int(19.9) test, then int(18.0) held out.
    assert [len(part) for part in prepared[:3]] == [162, 18, 19]
    loc, scale = kept[:180].mean(0), kept[:180].std(0, correction=0)
    expected = ((kept - loc) / scale).float()
    assert torch.allclose(torch.cat(list(prepared[:3])), expected, atol=1e-5)
    assert torch.equal(prepare(table_of(x), "maf", seed=9).train, prepared.train)
    with pytest.raises(ValueError, match="dequantize: expected False"):
        prepare(table_of(x), "maf", dequantize=True)
    with pytest.raises(ValueError, match="no column"):
        prepare(table_of(torch.ones(30, 3).double()), "maf")


def test_bad_preparations_are_refused() -> None:
    with pytest.raises(ValueError, match="standardize, maf, gebm"):
        prepare(table_of(skewed()), "whiten")
    for how in ("standardize", "maf", "gebm"):
        with pytest.raises(ValueError, match="rows"):
            prepare(table_of(skewed(4)), how)
    constant = skewed()
    constant[:, 0] = 1.0
    with pytest.raises(ValueError, match="column 0"):
        prepare(table_of(constant))


def test_correlated_columns_go_the_first_first() -> None:
    z = torch.randn(500, 3, generator=rng(), dtype=torch.float64)
    near = 0.01 * torch.randn(500, generator=rng(1), dtype=torch.float64)
    columns = [z[:, 0], z[:, 1], -z[:, 0] + near, 2 * z[:, 1] - near, z[:, 2], z[:, 0] + near]
    table = Table(torch.stack(columns, dim=1), tuple("abcdef"))
    left = drop_correlated(table)
    assert left.columns == ("d", "e", "f")
    assert torch.equal(left.values, table.values[:, [3, 4, 5]])
    assert drop_correlated(table, threshold=1.0).columns == tuple("abcdef")
    with pytest.raises(ValueError, match="threshold"):
        drop_correlated(table, 0.0)


# --- UCI ------------------------------------------


@pytest.fixture
def root() -> Path:
    path = Path(os.environ.get("PYRO_GEBM_DATA", "nowhere"))
    if not (path / "uci").is_dir():
        pytest.skip("PYRO_GEBM_DATA names no folder with uci/")
    return path


@pytest.mark.parametrize(
    ("name", "shape", "last"),
    [
        ("redwine", (1599, 11), "alcohol"),
        ("whitewine", (4898, 11), "alcohol"),
        ("parkinsons", (5875, 15), "PPE"),
    ],
)
def test_uci_tables(root: Path, name: str, shape: tuple[int, int], last: str) -> None:
    table = load_uci(name, root)
    assert tuple(table.values.shape) == shape and table.columns[-1] == last
    if name == "redwine":
        plain = np.loadtxt(root / "uci/winequality-red.csv", delimiter=";", skiprows=1)[:, :-1]
        assert np.array_equal(table.values.numpy(), plain)


def test_parkinsons_loses_the_columns_that_the_signed_rule_drops(root: Path) -> None:
    plain = np.loadtxt(root / "uci/parkinsons_updrs.data", delimiter=",", skiprows=1)[:, 3:]
    left, look = plain, np.abs
    while (many := (look(np.corrcoef(left.T)) > 0.98).sum(1) > 1).any():
        left, look = np.delete(left, np.where(many)[0][0], axis=1), np.positive
    assert np.array_equal(load_uci("parkinsons", root).values.numpy(), left)


def test_uci_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"uci/winequality-red\.csv"):
        load_uci("redwine", tmp_path)
    with pytest.raises(ValueError, match="redwine, whitewine, parkinsons"):
        load_uci("rosewine", tmp_path)
