"""`lacuna config show | validate | schema`."""

from typing import Annotated

import typer

from launch.commands.output import Json, Overrides, print_json

app = typer.Typer(help="Look at configurations.", no_args_is_help=True)
Recipe = Annotated[str, typer.Argument(help="A shipped recipe or the path of a YAML file.")]


@app.command()
def show(recipe: Recipe, overrides: Overrides = None, json: Json = False) -> None:
    """The resolved configuration with every default."""
    from launch.recipe import dump_config, load_recipe

    config = load_recipe(recipe, overrides or [])
    if json:
        print_json(config.model_dump(mode="json"))
    else:
        print(dump_config(config), end="")


@app.command()
def validate(recipe: Recipe, overrides: Overrides = None) -> None:
    """Exit code 0 if the recipe is valid, else 2 with the key and the mend."""
    from launch.recipe import load_recipe

    config = load_recipe(recipe, overrides or [])
    print(f"{recipe} is valid: {config.model.parameters().total:,} parameters, {config.train.total_tokens:,} tokens")


@app.command()
def schema() -> None:
    """JSON schema of a recipe, for editors."""
    from pretrain.config import RunConfig

    print_json(RunConfig.model_json_schema())


@app.command()
def recipes() -> None:
    """Names of the shipped recipes."""
    from launch.recipe import shipped_recipes

    for name in shipped_recipes():
        print(name)
