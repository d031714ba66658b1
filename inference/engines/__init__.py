"""One file an engine; each gives an `open_…_engine` whose engine passes `market.testing_engine.check_engine`."""
