"""`lacuna sample` and `lacuna evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from launch.commands.output import Json, print_json

Trained = Annotated[Path, typer.Argument(help="Run directory, or one of its checkpoints.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(sample)
    app.command()(evaluate)


def sample(
    run: Trained,
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "",
    length: Annotated[int, typer.Option(min=1, help="Tokens to sample.")] = 64,
    block: Annotated[int | None, typer.Option(min=1, help="Block length (default: one block).")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Forward passes (default: one per token).")] = None,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    frames: Annotated[int, typer.Option(min=1, help="Moments of the unmasking to show.")] = 6,
    json: Json = False,
) -> None:
    """Sample text and show the order in which it appears."""
    from inference.generation import generate
    from inference.sampler import SamplerConfig
    from inference.trained_model import load_trained

    settings = SamplerConfig.parse(
        {"length": length, "block_length": block, "steps": steps, "temperature": temperature}, "lacuna sample"
    )
    generated = generate(load_trained(run), prompt, settings, seed, frames)
    if json:
        print_json({"text": generated.text, "forwards": generated.forwards, "revealed_at": generated.revealed_at})
    else:
        print("\n".join(generated.frames))


def evaluate(
    run: Trained,
    windows: Annotated[int, typer.Option(min=2, help="Held-out windows to score.")] = 256,
    draws: Annotated[int, typer.Option(min=1, help="Noise draws per window (masked diffusion).")] = 128,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json: Json = False,
) -> None:
    """Held-out bits per byte with standard error: a bound for masked diffusion, exact for the baseline."""
    from dataclasses import asdict

    from inference.evaluation import evaluate as score
    from inference.trained_model import load_trained
    from launch.tracking import record_evaluation

    trained = load_trained(run)
    held_out = score(trained, windows, draws, seed, show_progress=not json)
    settings = {"windows": windows, "draws": draws, "seed": seed}
    record_evaluation(trained.checkpoint, trained.manifest.step, settings, asdict(held_out))
    if json:
        print_json(asdict(held_out))
    else:
        print(
            f"{held_out.bits_per_byte:.4f} ± {held_out.standard_error:.4f} bits per byte ({held_out.kind}, "
            f"{held_out.windows} windows, {held_out.draws} draws each)"
        )
