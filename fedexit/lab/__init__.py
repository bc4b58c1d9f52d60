"""Run the experiments. Start with `plan.setting_of` and `grid.run_grids`.

setting     the options of a grid, and its cells: one per trained model
plan        how each task is trained
grid        many cells side by side; `checks` refuses impossible ones first
cells       one cell, from its task and start to its errors; `material` opens its corpus and task
kept        finished cells on disk, with a record of what made them
published   the cells in results/cells; `spot_checks` trains some again and compares them
statistics  intervals over seeds and clips, and tests
effects     sizes of effects, and means over tasks
toy         federations of random weights
corpus_study, pretraining_study, layer_probes, cost_study, exit_study, policy_study, export_study, privacy_study
            what single notebooks compute and say
beam, verification, own_heads  other ways to decode, to compare and to predict
heterofl    a baseline: narrow clients instead of shallow ones; `channels` chooses what they keep
paper       the published tables; `open_choices` lists what the paper leaves open
plots, looks  figures and their common style
readme      the tables of the README
"""
