"""What the command `mscope` calls first. Where a checkpoint is all that was named it goes straight to the app, without click (25 ms)."""

from __future__ import annotations

import sys
from typing import NoReturn

from modelscope_app.api.errors import MscopeError
from modelscope_app.cli.subcommands import is_to_open


def main() -> NoReturn:
    """Run `mscope` and exit with its code."""
    words = sys.argv[1:]
    if len(words) == 1 and is_to_open(words[0]) and sys.stdout is not None:
        from modelscope_app.cli.app import open_app

        try:
            open_app(words[0])
        except MscopeError as error:
            print(f"mscope: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
    from modelscope_app.cli.main import main as whole

    whole()


if __name__ == "__main__":
    main()
