"""The parts of a sweep: its points, what is kept of a run that was stopped, graphs that are timed."""
