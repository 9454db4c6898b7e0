"""`python -m generator`: the one place where errors become messages and exit codes."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from generator.cli import app
from generator.errors import GeneratorError, UserError

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""From click, or from the copy of it that newer Typers carry."""


def main() -> int:
    try:
        # Not standalone: a wrong word on the command line would end with 2, which means drift here.
        code = int(app(standalone_mode=False) or 0)
        sys.stdout.flush()
        return code
    except _UsageError as error:
        error.show()  # type: ignore[attr-defined]
        return UserError.exit_code
    except GeneratorError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has seen enough (`| head`). Python's own flush at the end must not stumble over it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        traceback.print_exc()
        print("this is a bug of the generator: please report it with the lines above", file=sys.stderr)
        return GeneratorError.exit_code


if __name__ == "__main__":
    sys.exit(main())
