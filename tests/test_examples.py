"""Examples run with ``--smoke`` and print what they promise.

Those of posteriors, densities and manifolds have a file, and so a process, of their own.
"""

import os
from pathlib import Path

import pytest
from example_runs import rows_of


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


@pytest.mark.skipif("PYRO_GEBM_DATA" not in os.environ, reason="needs MNIST in PYRO_GEBM_DATA")
def test_images_has_a_row_per_kernel(tmp_path: Path) -> None:
    rows = rows_of("images", tmp_path)
    assert [row[0] for row in rows[:2]] == ["samples", "base"]
    assert len(rows) == 9


@pytest.mark.skipif("PYRO_GEBM_DATA" not in os.environ, reason="needs MNIST in PYRO_GEBM_DATA")
def test_stacked_images_count_the_modes_of_base_and_model(tmp_path: Path) -> None:
    rows = rows_of("images", tmp_path, "--stacked")
    assert [row[0] for row in rows] == ["seed 0", "base", "HMC"]
    # 64 images have as many modes at most, and log(1000 / 64) nats is as close as they come.
    assert all(1 <= int(row[1]) <= 64 and float(row[2]) > 2.7 for row in rows[1:])
    assert (tmp_path / "stacked-mnist-cpu-0.png").exists()
