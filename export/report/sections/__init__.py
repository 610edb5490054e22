"""The sections of reports: what is said of layers, speed, checks and questions, once for all pages."""
