"""Who may do what on Redis and Sentinel: the ACL and authentication files, as texts. Pure.

Three users: `appliance` (our services: the queue's keys, nothing that administers), `replica` (the link between
master and replicas) and `sentinel` (what https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/
asks for); where there is monitoring a fourth, `exporter`, which reads figures and sees no key. The default user is off
everywhere. Passwords are told apart, so that a leak stays small.
"""

from __future__ import annotations

import hashlib

# Redis 8.0 reads its append-only file as the default user and drops every transaction that user may not execute: a
# restart would lose what the queue's scripts wrote. So it may do what `appliance` may; being off, nobody can be it.
_REDIS_USERS = """\
user default reset off ~{{q}}:* &{{q}}:* +@all -@admin -@dangerous
user appliance on #{appliance} ~{{q}}:* &{{q}}:* +@all -@admin -@dangerous +info +role
user replica on #{replica} +psync +sync +replconf +ping
user sentinel on #{sentinel} &* +multi +slaveof +ping +exec +subscribe +config|rewrite +role +publish +info \
+client|setname +client|kill +script|kill
"""
_SENTINEL_USERS = """\
user default reset off
user appliance on #{appliance} &* +ping +info +role +subscribe +psubscribe +unsubscribe +punsubscribe +client|setname \
+client|setinfo +sentinel|master +sentinel|masters +sentinel|replicas +sentinel|slaves +sentinel|sentinels \
+sentinel|get-master-addr-by-name +sentinel|ckquorum
user sentinel on #{sentinel} &* +ping +info +role +publish +subscribe +client|setname +sentinel|is-master-down-by-addr \
+sentinel|debug
"""
_REDIS_EXPORTER = """\
user exporter on #{exporter} +ping +info +client|setname +slowlog|get +slowlog|len +latency|latest +latency|histogram
"""
_SENTINEL_EXPORTER = """\
user exporter on #{exporter} +ping +info +client|setname +sentinel|masters +sentinel|sentinels +sentinel|replicas \
+sentinel|slaves +sentinel|ckquorum
"""
_REDIS_AUTH = """\
masteruser replica
masterauth {replica}
"""
_SENTINEL_AUTH = """\
sentinel auth-user queue sentinel
sentinel auth-pass queue {sentinel}
sentinel sentinel-user sentinel
sentinel sentinel-pass {sentinel}
"""


def access_files(
    *, appliance: str, replica: str, sentinel: str, replicated: bool, exporter: str | None = None
) -> dict[str, str]:
    """File name → content, from the passwords; a single Redis needs its users only, `exporter` is for monitoring."""
    passwords = {"appliance": appliance, "replica": replica, "sentinel": sentinel, "exporter": exporter or ""}
    hashes = {user: hashlib.sha256(password.encode()).hexdigest() for user, password in passwords.items()}
    more = ("", "") if exporter is None else (_REDIS_EXPORTER, _SENTINEL_EXPORTER)
    files = {"redis_users.acl": (_REDIS_USERS + more[0]).format(**hashes)}
    if replicated:
        files["redis_auth.conf"] = _REDIS_AUTH.format(**passwords)
        files["sentinel_users.acl"] = (_SENTINEL_USERS + more[1]).format(**hashes)
        files["sentinel_auth.conf"] = _SENTINEL_AUTH.format(**passwords)
    return files
