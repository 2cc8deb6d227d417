"""Serve, score and train autoencoders. Nothing heavy is imported here."""

__version__ = "0.1.0"
