"""`python3 -m keeper keep | healthcheck`."""

from __future__ import annotations

import os
import sys

from keeper import health, loop
from keeper.settings import read_settings


def main(argv: list[str]) -> int:
    settings = read_settings(os.environ)
    if argv == ["keep"]:
        return loop.keep(settings)
    if argv == ["healthcheck"]:
        return health.check(settings)
    print("usage: python3 -m keeper keep | healthcheck", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
