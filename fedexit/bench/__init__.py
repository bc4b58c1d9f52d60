"""Measure what the engine, the aggregation and a shallow exit cost: `fedexit bench`."""
