"""Elasticsearch made ready for the lines of the cluster."""
