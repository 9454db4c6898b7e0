"""Decides which peers the gateway may use: probes every one, judges, pushes the state over a unix socket."""
