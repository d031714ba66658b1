"""The command line, `octo-node`: one file a group of commands, loaded when it is called.

A command asks the running node over its private API, shows the answer, and ends with a code that means
something (`node.cli.exits`). Knows the API's words; opens no store, no key and no socket of the mesh. Only
`contracts` needs no node: it asks a chain, with a deployer's key.
"""

from node.cli.commands import main

__all__ = ["main"]
