"""One file for whoever helps: everything about a run, with its secrets masked."""
