"""The README shows the figures that were measured, and no others."""

from bench.figures import README, with_table


def test_the_readmes_figures_are_those_in_bench_results():
    readme = README.read_text()
    assert with_table(readme) == readme, "run python -m bench.figures"
