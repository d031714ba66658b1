"""`python -m node.cli` is `octo-node`."""

from node.cli.commands import main

main(prog_name="octo-node")
