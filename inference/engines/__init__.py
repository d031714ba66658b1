"""One file an engine; each gives an `open_…_engine` whose engine passes `market.testing.check_engine`."""
