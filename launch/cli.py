"""The command line. It imports nothing heavy: `lacuna --help` answers at once."""

import os
import sys
from typing import Annotated

import typer

from launch.commands import (
    checkpoint,
    config,
    data,
    doctor,
    model,
    profile,
    run,
    scaling,
    status,
    study,
    submit,
    tokenizer,
    track,
)
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
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(track.app, name="track")
app.add_typer(scaling.app, name="scaling")
app.add_typer(study.app, name="study")
run.register(app)
model.register(app)
submit.register(app)
status.register(app)
profile.register(app)
doctor.register(app)

_DEBUG = "LACUNA_DEBUG"


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    if debug:
        os.environ[_DEBUG] = "1"


def main() -> None:
    """Run a command. A user's error is one line on standard error and exit code 2."""
    try:
        code = app(prog_name="lacuna", standalone_mode=False)
    except LacunaError as error:
        if os.environ.get(_DEBUG):
            raise
        print(f"lacuna: {one_line(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        sys.exit(_usage_error(error))
    sys.exit(code if isinstance(code, int) else 0)


def _usage_error(error: Exception) -> int:
    """Tell click's own errors (typer carries a click of its own, so by their methods) in our one line."""
    show, message = getattr(error, "show", None), getattr(error, "format_message", None)
    if show is None or message is None:
        raise error
    if type(error).__name__ == "NoArgsIsHelpError":
        show()
    else:
        command = getattr(getattr(error, "ctx", None), "command_path", "lacuna")
        print(f"lacuna: {one_line(Exception(message()))}: see `{command} --help`", file=sys.stderr)
    return int(getattr(error, "exit_code", 2))


if __name__ == "__main__":
    main()
