"""``ostrain top``: a run's nodes and ranks, live (board: what is known; frame: how it looks; live: the loop)."""
