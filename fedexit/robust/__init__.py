"""Withstand faulty and hostile clients. Start with `guard.federate_guarded` and the methods in `rules.ROBUST`.

inspection  what an update must be; anything else is refused with one line
guard       rounds that skip, count and name refused clients
scores      norm and direction of each update by layer, and how high they rank faulty clients
rules       clipping, median, trimmed mean and Krum, per layer over the clients that hold it
faults      clients that fail or attack, for experiments
"""
