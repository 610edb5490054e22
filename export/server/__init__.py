"""A server of one artifact that speaks OpenAI's chat completions: queue, picture cache, limits, metrics."""
