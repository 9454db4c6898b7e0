"""`python -m appliance VERB`: one image, one verb per service."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

from appliance.errors import ApplianceError

EPILOG = """\
examples:
  python -m appliance api                      serve the public API (behind the gateway)
  python -m appliance agent                    lease jobs for one GPU and have its webui do them
  python -m appliance exporter                 tell Prometheus what this host does
  python -m appliance storage-init --create    prepare the two volumes, once, before anything else
  python -m appliance healthcheck api          exit 0 when the api of this container is alive

Everything else is told by environment variables (APPLIANCE_*) and secret files; a service that lacks one
names all that are missing and exits 1.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m appliance",
        description="The services of an AnimateDiff HA appliance.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("api", help="the public HTTP API: submit, watch and fetch jobs")
    verbs.add_parser("agent", help="one per GPU: leases jobs, drives the webui, commits results")
    verbs.add_parser("controller", help="probes the nodes and tells the gateway who gets traffic")
    verbs.add_parser("exporter", help="one per host: its GPUs, jobs and gateway, for Prometheus")
    verbs.add_parser("relay", help="tells group robots (DingTalk, WeCom) of alerts")
    verbs.add_parser("elasticsearch-setup", help="once before Logstash: template, lifecycle and its key")
    init = verbs.add_parser("storage-init", help="verify the two volumes; with --create, prepare them")
    init.add_argument("--create", action="store_true", help="make folders and marker files, owned by 10001:10001")
    health = verbs.add_parser("healthcheck", help="exit 0 when alive, 1 otherwise, within 2 s")
    checked = ("api", "agent", "controller", "exporter", "relay", "http")
    health.add_argument("what", choices=checked, help="the service, or `http URL`")
    health.add_argument("url", nargs="?", help="the address for `http`; 2xx is healthy")
    return parser


def main(arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    environment = os.environ if environment is None else environment
    try:
        if options.verb == "storage-init":
            return init_storage(environment, create=options.create)
        if options.verb == "healthcheck":
            if (options.what == "http") != (options.url is not None):
                parser.error("`http` needs a URL, the other checks take none")
            return check_health(options.what, options.url, environment)
        return run_service(options.verb, environment)
    except ApplianceError as error:
        for line in str(error).splitlines():
            print(f"appliance {options.verb}: {line}", file=sys.stderr)
        return 1


def run_service(verb: str, environment: Mapping[str, str]) -> int:
    # Imported late: each service starts without the libraries of the others, and a health check, which every container
    # has every few seconds, with next to none.
    if verb == "api":
        from appliance.api.main import run as run_api
        from appliance.settings import read_api_settings

        return run_api(read_api_settings(environment))
    if verb == "agent":
        from appliance.agent.main import run as run_agent
        from appliance.settings import read_agent_settings

        return run_agent(read_agent_settings(environment))
    if verb == "exporter":
        from appliance.exporter.main import run as run_exporter
        from appliance.exporter.settings import read_exporter_settings

        return run_exporter(read_exporter_settings(environment))
    if verb == "relay":
        from appliance.relay.main import run as run_relay
        from appliance.relay.settings import read_relay_settings

        return run_relay(read_relay_settings(environment))
    if verb == "elasticsearch-setup":
        from appliance.log_store.settings import read_setup_settings
        from appliance.log_store.setup import run as run_setup

        return run_setup(read_setup_settings(environment))
    from appliance.controller.main import run as run_controller

    run_controller()
    return 0


def init_storage(environment: Mapping[str, str], *, create: bool) -> int:
    from appliance import storage
    from appliance.settings import read_storage_settings

    settings = read_storage_settings(environment)
    if create:
        storage.prepare(settings.jobs_dir)
        storage.prepare(settings.models_dir, storage.MODEL_FOLDERS)
    problems = storage.find_problems(settings.jobs_dir)
    problems += storage.find_problems(settings.models_dir, storage.MODEL_FOLDERS)
    for problem in problems:
        print(f"appliance storage-init: {problem}", file=sys.stderr)
    if not problems:
        print(f"storage is prepared: {settings.jobs_dir}, {settings.models_dir}")
    return 1 if problems else 0


def check_health(what: str, url: str | None, environment: Mapping[str, str]) -> int:
    from appliance import healthcheck

    if what == "http":
        problem = healthcheck.check_http(url or "")
    elif what in healthcheck.PORTS:
        problem = healthcheck.check_http(healthcheck.own_url(what, environment))
    else:
        problem = healthcheck.check_heartbeat(what)
    if problem:
        print(problem, file=sys.stderr)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
