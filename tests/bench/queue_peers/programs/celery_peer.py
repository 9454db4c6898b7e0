"""celery: prefork, one process, no prefetching, no results. Workers are `celery -A celery_peer worker`.

Tuned is a late acknowledgement with a short visibility timeout. Nothing renews it: a longer job is run twice.
"""

from __future__ import annotations

import sys

import harness
from celery import Celery

app = Celery("bench", broker=harness.URL)
app.conf.update(task_ignore_result=True, worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True)
if harness.TUNED:
    app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True)
    app.conf.broker_transport_options = {"visibility_timeout": 3, "unacked_restore_limit": 100}


@app.task(name="job")
def job(text: str) -> None:
    harness.run_job_blocking(text)


if __name__ == "__main__" and sys.argv[1] == "submit":
    harness.submit_all_blocking(job.delay)
