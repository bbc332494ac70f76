"""One run: from an experiment to its folder of results."""
