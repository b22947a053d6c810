"""Every example runs with ``--smoke`` and prints what it promises."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def rows_of(name: str, out: Path | None, *options: str) -> list[list[str]]:
    """The cells of the tables that an example prints."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--smoke", *options]
    command += [] if out is None else ["--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_five_seeds_prints_a_row_per_seed_and_the_medians(tmp_path: Path) -> None:
    rows = rows_of("five_seeds", tmp_path)
    assert [row[0] for row in rows] == ["seed", "0", "**median**"]
    assert len({len(row) for row in rows}) == 1, "columns line up"
    assert (tmp_path / "0" / "samples.png").exists()


def test_training_choices_prints_a_row_per_way(tmp_path: Path) -> None:
    ways = ["alternating", "joint (one stage)", "EBM in data space"]
    rows = rows_of("training_choices", tmp_path, "--ways", *ways)
    tables = 3  # one per metric
    assert [row[0] for row in rows] == ["way", *ways] * tables
    assert len({len(row) for row in rows}) == 1, "columns line up"


def test_log_partition_prints_errors_and_draws_them(tmp_path: Path) -> None:
    rows = rows_of("log_partition", tmp_path)
    assert rows[0] == ["steps", "batch", "c", "ESS"] and len(rows) == 1 + 8
    assert (tmp_path / "log_partition.png").stat().st_size > 0


def test_patch_dimension_prints_both_tables(tmp_path: Path) -> None:
    rows = rows_of("patch_dimension", tmp_path)
    assert rows[0][:2] == ["p", "3 p²"] and len(rows) == 4 + 1 + 3 * 2
    assert (tmp_path / "patch_dimension.png").stat().st_size > 0


def test_memorisation_scores_every_set(tmp_path: Path) -> None:
    rows = rows_of("memorisation", tmp_path)
    sets = ["samples", "copies", "fresh data", "base", "model", "minima"]
    assert [row[0] for row in rows] == sets
    assert (tmp_path / "minima.png").stat().st_size > 0


def test_improve_a_gan_has_a_row_per_method() -> None:
    rows = rows_of("improve_a_gan", None)
    assert len(rows) == 21 and len({len(row) for row in rows}) == 1


def test_flow_density_compares_three_models(tmp_path: Path) -> None:
    rows = rows_of("flow_density", tmp_path / "table.md")
    models = ["flow by maximum likelihood", "GEBM, residual energy", "GEBM, free energy"]
    assert [row[0] for row in rows] == ["model", *models]


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


@pytest.mark.skipif("PYRO_GEBM_DATA" not in os.environ, reason="needs MNIST in PYRO_GEBM_DATA")
def test_images_has_a_row_per_kernel(tmp_path: Path) -> None:
    rows = rows_of("images", tmp_path)
    assert [row[0] for row in rows[:2]] == ["samples", "base"]
    assert len(rows) == 9
