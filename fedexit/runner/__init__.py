"""The runner: it turns notebooks into results."""
