"""The commands that show what is there: `inspect` a path, list the shipped `recipes` and the `models`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from vtcompress.console import Output


@click.command()
@click.argument("path")
@click.option(
    "--image", metavar="FILE", help="How many visual tokens this picture gives, and where."
)
@click.pass_obj
def inspect(out: Output, /, path: str, image: str | None) -> None:
    """Tell what a folder of a model or artifact, a plan, profile or measured costs are; loads no weights."""
    import vtcompress
    from vtcompress.cli import brief, show

    facts = vtcompress.inspect(path, image)
    out.result(facts)
    problems = facts.pop("problems", ())
    out.table(path, ("fact", "value"), show.flat_rows(facts))
    brief.facts(out, show.flat_rows(facts))
    for problem in problems:
        out.always(f"problem: {problem}")


@click.command()
@click.argument("name", required=False)
@click.pass_obj
def recipes(out: Output, /, name: str | None) -> None:
    """List the shipped recipes, or explain and print one."""
    from vtcompress.shipped import find_recipe, shipped_recipes

    shipped = shipped_recipes()
    if name is None:
        rows = [(r.name, r.title, r.model) for r in shipped]
        out.table("Shipped recipes", ("name", "what it does", "model"), rows)
        out.brief("\n".join(r.name for r in shipped))
        out.line("`vtcompress recipes NAME` prints one with its explanation")
        out.result([{"name": r.name, "title": r.title, "model": r.model} for r in shipped])
        return
    text = find_recipe(name).read_text(encoding="utf-8")
    out.always(text.rstrip("\n"))
    out.result({"name": name, "text": text})


@click.command()
@click.pass_obj
def models(out: Output, /) -> None:
    """List the model types that can be compressed, their text decoders, and the methods that apply."""
    import vtcompress

    found = vtcompress.models()
    rows = [
        (
            model_type,
            ", ".join(family["decoders"]) or "not told",
            "; ".join(_methods_words(family["methods"])),
            family["package"] or "vtcompress",
        )
        for family in found
        for model_type in family["model_types"]
    ]
    out.table("Models", ("model type", "text decoders", "methods", "package"), rows)
    out.brief("\n".join(model_type for model_type, *_ in rows))
    out.result(list(found))


def _methods_words(methods: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield methods' names, whose they are, what of them does not apply; last those that do not."""
    refused: dict[str, list[str]] = {}
    for method in methods:
        words = method["name"] + (f" ({method['package']})" if method["package"] else "")
        left_out = ", ".join(method["without"])
        if not method["applies"]:
            refused.setdefault(method["why"], []).append(words)
        else:
            yield f"{words} without {left_out}: {method['why']}" if left_out else words
    yield from (f"not {', '.join(names)}: {why}" for why, names in refused.items())
