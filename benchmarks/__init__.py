"""Measurements of the models and the service that the documentation quotes: ``python -m benchmarks``. Not installed."""
