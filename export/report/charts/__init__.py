"""The charts of a report, drawn from data."""
