"""`lacuna train RECIPE --rehearse --nodes N`."""

from typing import Any

from launch.commands.output import human, print_json, print_table
from pretrain.config import RunConfig


def rehearse(config: RunConfig, world: int, device: str, json: bool) -> None:
    """Build the layout without GPUs and say what every pipeline stage holds. Raises UserError if it does not fit."""
    from pretrain.planning.rehearse import rehearse as build
    from pretrain.planning.rehearse import require_fit

    rehearsal = build(config, world, device, show_progress=not json)
    if json:
        print_json({"name": config.name, **rehearsal.as_dict()})
    else:
        _print(config.name, rehearsal.as_dict())
    require_fit(config, rehearsal)


def _print(name: str, result: dict[str, Any]) -> None:
    print(
        f"{name} on {result['world']} ranks as {result['layout']}, {result['micro_batches']} micro-batches a step.\n"
        f"Built: all {result['coordinates']} distinct (pipeline, tensor) ranks, under torch's fake process group on "
        "the meta device: real groups, layers and shapes, no GPUs, no messages, no numbers. Data and context ranks are "
        "copies of these.\n"
        f"Checked on what was built: {result['elements']:,} elements of {result['tensors']} logical tensors are held "
        "exactly once, and a micro-batch went forward and backward through every stage.\n"
        "Bytes are arithmetic: weights, gradients and optimizer from the parameters that were built; activations "
        "and logits from the shapes. They are of the stage's fullest rank."
    )
    columns = ("weights", "gradients", "optimizer", "activations", "logits", "total")
    rows = [
        (
            stage["pipeline_rank"],
            " ".join(stage["layers"]),
            f"{stage['parameters']:,}",
            *(human(stage["memory"][column], "B") for column in columns),
        )
        for stage in result["stages"]
    ]
    print_table(("stage", "layers", "parameters", *columns), rows)
    verdict = "fits" if result["fits"] else "does not fit"
    print(f"It {verdict} an {result['device']} with a tenth of its memory left free.")
