"""Several runs held against each other: methods, seeds, a search, or any runs that have finished.

candidates.request    what is asked for
experiment            create, open_experiment; next_run prepares one run after the other; set_aside, driving, states
train.train_all       train what is missing, in this process
ranking.results       lines, pairs and sentences of an experiment
beside.beside         the same of finished runs, with the settings that differ and their curves
plot                  svg, png and CSV of results
"""
