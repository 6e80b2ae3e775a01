"""One module at a time, without a network and without an engine."""
