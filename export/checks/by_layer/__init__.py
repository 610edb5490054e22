"""Export fidelity of a model that is never in memory: a layer at a time, torch's and the graph's."""
