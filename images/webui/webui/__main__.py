from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from webui.settings import SettingsError, listen_address, read_settings


def serve() -> int:
    from webui.logs import set_up_logs
    from webui.serve import serve as run_server

    settings = read_settings(os.environ)
    set_up_logs(settings.engine.log_level)
    return asyncio.run(run_server(settings))


def healthcheck() -> int:
    from webui.healthcheck import check_health

    return check_health(*listen_address(os.environ))


def make_demo_models(folder: Path) -> int:
    from webui.demo_models import make_models

    try:
        for made in make_models(folder):
            sys.stdout.write(f"{made}\n")
    except ImportError as error:
        sys.stderr.write(f"this image cannot make models: {error}; use the cpu or cuda image\n")
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m webui")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="serve HTTP and run the engine")
    commands.add_parser("healthcheck", help="exit 0 when the server in this container is ready")
    demo = commands.add_parser("make-demo-models", help="make a tiny checkpoint and motion module")
    demo.add_argument("folder", type=Path, help="root of the models volume")
    arguments = parser.parse_args()
    try:
        if arguments.command == "serve":
            return serve()
        return healthcheck() if arguments.command == "healthcheck" else make_demo_models(arguments.folder)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
