"""The stage that trains gates, judges them and reports on them."""
