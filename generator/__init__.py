"""Turns one cluster.yaml into one folder per host, and runs it."""

__version__ = "0.1.0"
