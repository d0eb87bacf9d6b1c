"""``ostrain report``: one HTML file about a run (history: what is read; svg, charts: pictures; build: the page)."""
