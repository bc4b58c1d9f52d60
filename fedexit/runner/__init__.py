"""Run notebooks, and record how their results were made. Start with `run.run`, the command `fedexit run`.

run          the notebooks that are out of date, and what they need
manifest     nbs_ci.yml, the list of notebooks
execution    one notebook in one kernel, under a time limit
watchdog     the process that ends a notebook at its time limit
jobs         notebooks side by side
results      tables and figures, as a notebook writes and reads them
checks       conditions on tables and files
fingerprint  hashes of everything that results depend on
publish      a run's results in their place, the published ones replaced only if they changed
provenance   the record of a result, and its comparison with the present
"""
