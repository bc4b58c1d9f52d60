"""The model: backbone, exit heads, costs, metrics and early exit."""
