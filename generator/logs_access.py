"""Who may do what on Elasticsearch: its file of users, as a text. Pure. Their roles stand in `config/elasticsearch`."""

from __future__ import annotations

from generator.monitoring_access import hashed
from generator.planned_logs import READER, SETUP

USERS_FILE = "elasticsearch_users"


def users_file(*, reader: str, setup: str) -> str:
    """From the two passwords; Elasticsearch's host knows no more than their hashes."""
    passwords = {READER: reader, SETUP: setup}
    # Two names of one thing, of which Elasticsearch knows the older.
    hashes = {user: hashed(password).replace("$2b$", "$2a$", 1) for user, password in passwords.items()}
    return "".join(f"{user}:{value}\n" for user, value in hashes.items())
