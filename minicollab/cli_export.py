"""`minicollab export`: of a run, or of an adapter that was trained elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from minicollab.cli_common import Number, display, events_option, json_option, set_option
from minicollab.errors import RecipeError
from minicollab.recipe import Export

_ADAPTER = "adapter_config.json"


def export_command(stage: click.Command) -> click.Command:
    """The command; for a run it is that of the `stage`, with some keys of the recipe as options."""

    @click.command("export")
    @click.argument("source", metavar="RUN_OR_RECIPE_OR_ADAPTER", type=click.Path(path_type=Path))
    @click.option("--quant", metavar="KIND,KIND", help="Such as q4_k_m,q8_0,f16. Default q4_k_m.")
    @click.option("--scale", type=Number(0, 100, min_open=True), help="Strength of the adapter; default 1.")
    @click.option("--adapter-only", is_flag=True, help="Write no merged model.")
    @click.option("--merged-only", is_flag=True, help="Write no adapter.")
    @click.option(
        "--base", metavar="GGUF", help="Of an adapter: the model to put it on, named as in recipes."
    )
    @click.option(
        "--hf-base",
        type=click.Path(path_type=Path),
        help="Of an adapter: the Hugging Face folder to check it on; default the GGUF, dequantized.",
    )
    @click.option(
        "--out",
        type=click.Path(path_type=Path),
        help="Run folder; default runs/<name of the recipe>. Of an adapter: where the files go.",
    )
    @set_option
    @events_option
    @json_option
    @click.pass_context
    def export(
        context: click.Context,
        source: Path,
        quant: str | None,
        scale: float | None,
        adapter_only: bool,
        merged_only: bool,
        base: str | None,
        hf_base: Path | None,
        out: Path | None,
        overrides: tuple[str, ...],
        events: Path | None,
        as_json: bool,
    ) -> None:
        """Write the trained model as GGUF, and check it against torch.

        Of a run (its folder, or its recipe), or of a PEFT adapter that was trained elsewhere: the
        folder that has its adapter_config.json, with --base.
        """
        options = _options(quant, scale, adapter_only, merged_only)
        shared: dict[str, Any] = {"out": out, "events": events, "as_json": as_json}
        if _is_adapter(source, base, hf_base, overrides):
            _export_adapter(source, str(base), hf_base, Export(**options), **shared)
        else:
            changed = tuple(f"export.{key}={json.dumps(what)}" for key, what in options.items())
            context.invoke(stage, run_or_recipe=source, overrides=overrides + changed, **shared)

    return export


def _export_adapter(
    adapter: Path,
    base: str,
    hf_base: Path | None,
    options: Export,
    *,
    out: Path | None,
    events: Path | None,
    as_json: bool,
) -> None:
    from minicollab.exporting import export_adapter
    from minicollab.summaries import exported

    with display("export", events) as progress:
        result = export_adapter(adapter, base, hf_base, out, options, progress)
    told = f"export: {exported(result, Path(result['folder']))}"
    click.echo(json.dumps(result, indent=1) if as_json else told)


def _options(quant: str | None, scale: float | None, adapter_only: bool, merged_only: bool) -> dict[str, Any]:
    """Keys of the recipe's section `export` that were given."""
    if adapter_only and (merged_only or quant):
        other = "--merged-only" if merged_only else "--quant"
        raise RecipeError(f"--adapter-only and {other} do not go together", "Leave one of them out.")
    options: dict[str, Any] = {}
    if quant is not None:
        kinds = [kind.strip() for kind in quant.split(",") if kind.strip()]
        if not kinds:
            raise RecipeError("--quant names no quantization", "Write it as --quant q4_k_m,q8_0.")
        options |= {"quantization": kinds, "only": None}  # whatever an earlier call left out
    if scale is not None:
        options["scale"] = scale
    if adapter_only or merged_only:
        options["only"] = "adapter" if adapter_only else "merged"
    return options


def _is_adapter(source: Path, base: str | None, hf_base: Path | None, overrides: tuple[str, ...]) -> bool:
    """Whether `source` is an adapter's folder. RecipeError if the options are not for what it is."""
    is_run = source.is_file() or (source / "recipe.yaml").is_file()
    if is_run or not (base or source.is_dir()):
        if base or hf_base:
            raise RecipeError(
                f"{source} is of a run, whose recipe names its base", "Leave --base and --hf-base out."
            )
        return False
    if not (source / _ADAPTER).is_file():
        raise RecipeError(
            f"{source} is neither a run folder (recipe.yaml) nor a PEFT adapter ({_ADAPTER})",
            "Give one of these, or a recipe.",
        )
    if not base:
        raise RecipeError(
            f"{source} is an adapter, and --base is missing",
            f"Type: minicollab export {source} --base MODEL.gguf",
        )
    if overrides:
        raise RecipeError("--set changes a recipe, and an adapter has none", "Use --quant, --scale, --out.")
    return True
