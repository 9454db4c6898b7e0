"""Where the models folder is: named by the user, or found from cluster.yaml's storage section."""

from __future__ import annotations

import os
from pathlib import Path

from generator.docker import Engine
from generator.errors import ToolError, UserError
from generator.load import load
from generator.model import Cluster, StorageDriver
from generator.ops.cluster import is_local
from generator.ops.model_store import Store

NAME_IT = "name the folder with --dir"


def find_folder(folder: Path | None, file: Path, *, write: bool) -> Store:
    """`folder`, or that of the cluster in `file`; `write`: make it if only its last part is missing."""
    found = folder or _of_cluster(file)
    try:
        if write:
            found.mkdir(exist_ok=True)
        elif not found.is_dir():
            raise UserError(f"{found}: no such folder; is the storage mounted?")
    except FileNotFoundError:
        raise UserError(f"{found.parent}: no such folder; is the storage mounted?") from None
    except OSError as error:
        raise UserError(f"{found}: {error.strerror}; choose another folder with --dir") from None
    if not os.access(found, (os.W_OK if write else 0) | os.R_OK | os.X_OK):
        what = "write" if write else "read"
        raise UserError(f"{found}: no permission to {what}; run this as root, or choose another folder with --dir")
    return Store(found)


def _of_cluster(file: Path) -> Path:
    if not file.exists():
        raise UserError(f"{file} is not here, which would say where the models are; {NAME_IT}")
    cluster = load(file).cluster
    storage = cluster.storage
    if storage.driver is StorageDriver.CEPHFS and storage.cephfs:
        return Path(storage.cephfs.path) / "models"
    if storage.driver is StorageDriver.NFS and storage.nfs:
        place = f"{storage.nfs.server}:{storage.nfs.export.rstrip('/')}/models"
        raise UserError(f"the models are on the NFS server, in {place}: mount it, or run this there, and {NAME_IT}")
    return _volume(cluster)


def _volume(cluster: Cluster) -> Path:
    """The Docker volume that compose makes for the driver `local`."""
    name, host = next(iter(cluster.hosts.items()))
    if not is_local(str(host.address)):
        raise UserError(f"the models are in a Docker volume on {name} ({host.address}): run this there, or {NAME_IT}")
    volume = f"{cluster.name}_models"
    try:
        return Path(Engine().run("volume", "inspect", "--format", "{{.Mountpoint}}", volume).strip())
    except ToolError as error:
        said = (error.stderr_tail.splitlines() or ["no answer"])[-1]
        make = "`docker compose run --rm --no-deps storage-init storage-init --create` in its rendered folder makes it"
        raise UserError(f"the Docker volume {volume} cannot be found ({said}); {make}; or {NAME_IT}") from None
