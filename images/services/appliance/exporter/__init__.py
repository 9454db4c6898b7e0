"""One per host: what its GPUs, its workers, its gateway and the queue are doing, for Prometheus."""
