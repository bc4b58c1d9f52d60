"""Measure speed and memory: `fedexit bench`. Start with `suite.bench`.

suite      runs the parts, each measurement in its own process (`child`)
workload   the model, clips and training that all engines share
engines    the bare loop, which is the lower limit, and `federate`
peers      other engines: pfl-research (`pfl_engine`), Flower (`flower_engine`) and `fedexit.flower` (`fleet_engine`)
aggregate  the speed of the server's average
depth      the time of a training step by exit
report     tables, figure and provenance

`fleet_table` measures rounds of 50 nodes, in an environment with Flower.
"""
