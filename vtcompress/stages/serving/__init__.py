"""The stage that serves an artifact."""
