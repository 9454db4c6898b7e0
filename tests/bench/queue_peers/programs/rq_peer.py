"""rq: its default worker, which forks for every job; jobs may be retried, or an abandoned one would only fail.

Tuned are its intervals; an abandoned job is noticed no earlier than 60 s after its last heartbeat.
"""

from __future__ import annotations

import logging
import sys

import harness
from redis import Redis
from rq import Queue, Retry, Worker

TUNED = {"worker_ttl": 16, "maintenance_interval": 1, "job_monitoring_interval": 1}

redis = Redis(harness.HOST, harness.PORT, harness.DATABASE, password=harness.PASSWORD)
queue = Queue("bench", connection=redis)

if __name__ == "__main__" and sys.argv[1] == "submit":
    again = Retry(max=3)
    harness.submit_all_blocking(
        lambda text: queue.enqueue("harness.run_job_blocking", text, job_timeout=4000, retry=again)
    )
elif __name__ == "__main__":
    worker = Worker([queue], connection=redis, log_job_description=False, **(TUNED if harness.TUNED else {}))
    worker.work(logging_level=logging.ERROR)
