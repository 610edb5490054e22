"""This project's decoder graphs beside those of other exporters and runtimes: same weights, same prompts."""
