"""Who may ask the monitoring's parts, and as whom they ask others: files, as texts. Pure."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache

import bcrypt

from generator.planned_metrics import USER

WEB_FILE = "monitoring_web.yml"
_ROUNDS = 10
_STANDARD = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_OF_BCRYPT = b"./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_TLS = """\
tls_server_config:
  cert_file: /run/secrets/monitoring.crt
  key_file: /run/secrets/monitoring.key
  min_version: TLS12
"""
_HEADERS = """\
http_server_config:
  headers:
    X-Frame-Options: deny
    X-Content-Type-Options: nosniff
"""


def web_file(password: str, *, tls: bool) -> str:
    """For --web.config.file of Prometheus, Alertmanager and node-exporter."""
    return f"basic_auth_users:\n  {USER}: {hashed(password)}\n{_TLS if tls else ''}{_HEADERS}"


def redis_exporter_file(password: str, accounts: Sequence[str]) -> str:
    """For --redis.password-file: the exporter sends it to these servers and to nobody else."""
    return json.dumps(dict.fromkeys(accounts, password), indent=1) + "\n"


@lru_cache(maxsize=8)
def hashed(password: str) -> str:
    """bcrypt with a salt made from the password: the same file each time, or every `up` would start all of it anew.
    With 256 random bits there is nothing that a table of hashes could hold."""
    digest = hashlib.sha256(b"animatediff-ha web " + password.encode()).digest()[:16]
    salt = base64.b64encode(digest).rstrip(b"=").translate(bytes.maketrans(_STANDARD, _OF_BCRYPT))
    return bcrypt.hashpw(password.encode(), b"$2b$%d$%s" % (_ROUNDS, salt)).decode()
