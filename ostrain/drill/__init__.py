"""``ostrain drill``: faults rehearsed on a user's own job, each compared with a run that nobody disturbed.

plan -> faults (what is broken, what should follow) -> case (one run: submit, break, watch, compare) -> report.
"""
