"""The README shows the figures that were measured, and no others."""

import json

from bench.figures import GAS, GAS_ROWS, README, with_tables


def test_the_readmes_figures_are_those_in_bench_results():
    readme = README.read_text()
    assert with_tables(readme) == readme, "run python -m bench.figures"


def test_the_gas_in_the_readme_is_within_its_goals():
    gas = json.loads(GAS.read_text())
    over = {name: gas[name] for name, (_, goal) in GAS_ROWS.items() if goal is not None and gas[name] > goal}
    assert over == {}
