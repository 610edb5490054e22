"""One call for every backend, and the caches behind it."""
