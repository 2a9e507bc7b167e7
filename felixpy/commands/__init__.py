"""The command line: ``main`` has the commands and their options; the rest is what stands behind them."""
