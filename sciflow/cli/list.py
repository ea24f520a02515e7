"""``sciflow list``: what there is to use."""

from __future__ import annotations

from pathlib import Path

import click

from sciflow.errors import InputError

__all__ = ["list_"]


@click.command("list")
def list_() -> None:
    """Show domains with their models, properties and data sets."""
    from sciflow.bundled import bundled_models
    from sciflow.domain import get_domain, names

    models = bundled_models()
    for i, name in enumerate(sorted(names())):
        if i:
            click.echo()
        try:
            domain = get_domain(name)
        except InputError as error:
            click.echo(f"{name}: {error}")
            continue
        click.echo(f"{name}: {domain.summary}")
        own = {k: _headline(v) for k, v in models.items() if k.split("/")[0] == name}
        _section("models", own or {"(none bundled)": "train one: sciflow train --help"})
        properties = domain.properties.items()
        _section("properties", {k: p.summary + (f" [{p.unit}]" if p.unit else "")
                                for k, p in properties})  # fmt: skip
        _section("data sets", dict(domain.datasets))


def _section(title: str, entries: dict[str, str]) -> None:
    if entries:
        click.echo(f"  {title}")
    width = max(map(len, entries), default=0)
    for name, text in entries.items():
        click.echo(f"    {name:<{width}}  {text}".rstrip())


def _headline(folder: Path) -> str:
    """The first sentence of a model's card."""
    try:
        lines = (folder / "card.md").read_text().splitlines()
    except OSError:
        return "(its card cannot be read)"
    text = "\n".join(s.strip() for s in lines if not s.startswith("#")).strip()
    paragraph = text.partition("\n\n")[0].replace("\n", " ")
    sentence, more, _ = paragraph.partition(". ")
    return sentence + more.strip()
