"""The command line. It imports nothing heavy: `lacuna --help` answers at once."""

import os
import sys
from typing import Annotated

import typer

from launch.commands import checkpoint, config, data, model, run, track
from runtime.errors import LacunaError, one_line

app = typer.Typer(
    name="lacuna",
    help="Pretrain masked-diffusion language models: the same run on every layout.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(data.app, name="data")
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(config.app, name="config")
app.add_typer(track.app, name="track")
run.register(app)
model.register(app)

_DEBUG = "LACUNA_DEBUG"


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    if debug:
        os.environ[_DEBUG] = "1"


def main() -> None:
    """Run a command. A user's error is one line on standard error and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except LacunaError as error:
        if os.environ.get(_DEBUG):
            raise
        print(f"lacuna: {one_line(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        show = getattr(error, "show", None)  # click's own usage errors
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 2))
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
