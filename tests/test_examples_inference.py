"""Examples of posteriors, densities and manifolds run with ``--smoke`` and keep their promise."""

from pathlib import Path

from example_runs import rows_of


def test_denoising_tells_coverage(tmp_path: Path) -> None:
    assert len(rows_of("denoise_unknown_scale", tmp_path)) > 1
    assert (tmp_path / "denoised.png").stat().st_size > 0


def test_what_is_a_gebm_has_support_and_weights_right(tmp_path: Path) -> None:
    rows = rows_of("what_is_a_gebm", tmp_path)
    assert [row[0] for row in rows] == ["samples", "data", "EBM", "generator alone", "GEBM"]
    off, wrong = ({row[0]: float(row[k].split()[0]) for row in rows[1:]} for k in (1, 2))
    assert off["GEBM"] < 0.01 < off["EBM"] and wrong["GEBM"] < wrong["generator alone"]
    assert (tmp_path / "story_0.png").stat().st_size > 0


def test_calibration_judges_every_site(tmp_path: Path) -> None:
    rows = rows_of("calibration", tmp_path)
    assert [row[0] for row in rows] == [
        "site",
        "z",
        "scale",
        "digits",
        "the model's own",
        "held-out",
    ]
    # Sixteen latents and a scale, and a smoke test of 64 problems.
    assert all(float(row[1]) > 1e-5 for row in rows[1:3])
    assert (tmp_path / "calibration.png").stat().st_size > 0


def test_inversions_have_a_row_per_method() -> None:
    rows = rows_of("compare_inversions", None)
    assert len(rows) == 1 + 6 and len({len(row) for row in rows}) == 1


def test_out_of_distribution_ranks_other_data_as_odder() -> None:
    rows = rows_of("out_of_distribution", None)
    assert [row[0] for row in rows] == [
        "score",
        "energy, -E(x)",
        "evidence, base",
        "evidence, model",
    ]
    assert float(rows[3][3]) > 0.9, "stripes of another width"


def test_uci_has_a_row_per_method(tmp_path: Path) -> None:
    rows = rows_of("uci", tmp_path)
    assert len(rows) == 1 + 9 + 1 + 6
    assert {len(row) for row in rows} == {7, 9}


def test_line_manifold_has_a_row_per_model(tmp_path: Path) -> None:
    rows = rows_of("line_manifold", tmp_path, "--dims", "2", "--models", "EBM", "GAN", "GEBM")
    names = ["fresh data", "flat curve (z, 0)", "EBM", "GAN", "GEBM"]
    assert [row[0] for row in rows] == ["R^2", *names]
    assert (tmp_path / "line_manifold.png").stat().st_size > 0


def test_surface_tells_errors(tmp_path: Path) -> None:
    assert len(rows_of("surface", tmp_path)) == 1 + 4
    assert (tmp_path / "surface.png").stat().st_size > 0


def test_parallel_lines_has_a_row_per_distance(tmp_path: Path) -> None:
    assert len(rows_of("parallel_lines", tmp_path)) == 1 + 3
    assert (tmp_path / "parallel_lines.png").stat().st_size > 0
