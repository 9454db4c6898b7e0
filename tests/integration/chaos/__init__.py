"""A cluster of three queue hosts in containers, what can be done to it, and what must be true of it all the same."""
