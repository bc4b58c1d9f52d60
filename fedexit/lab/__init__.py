"""The machinery of the experiments: settings, cells, grids, statistics and figures."""
