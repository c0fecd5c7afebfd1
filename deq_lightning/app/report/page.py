"""A page that needs nothing but itself."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import yaml

from deq_lightning.app.report.look import as_svg
from deq_lightning.app.report.pictures import Picture
from deq_lightning.app.tables import called

CSS = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 75rem; margin: 0 auto; padding: 1rem; background: Canvas; color: CanvasText; }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 0; }
p { margin: .25rem 0; max-width: 45rem; } code, pre { font: .85rem/1.4 ui-monospace, monospace; }
pre { overflow-x: auto; padding: .75rem; background: color-mix(in srgb, CanvasText 7%, Canvas); border-radius: .4rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .5rem 1rem; margin: 1rem 0; }
dt { font-size: .8rem; opacity: .75; } dd { margin: 0; font-size: 1.15rem; overflow-wrap: anywhere; }
main { columns: 30rem 2; column-gap: 2rem; }
figure { margin: 0 0 2rem; break-inside: avoid; } figure svg { width: 100%; height: auto; }
figcaption { font-size: .85rem; }
.table { overflow-x: auto; margin: 1rem 0; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #8885; }
th:first-child, td:first-child { text-align: left; } th { vertical-align: bottom; }
"""


def page(
    title: str,
    said: Sequence[str],
    facts: Mapping[str, Any],
    pictures: Sequence[Picture],
    rows: Sequence[Mapping[str, Any]] = (),
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Return a page of HTML.

    Args:
        title: its heading.
        said: paragraphs below; what is in backquotes is code.
        facts: figures by what they are called.
        pictures: in their order.
        rows: of a table.
        settings: shown where the reader asks for them.
    """
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>",
        f"<meta name=viewport content='width=device-width, initial-scale=1'><style>{CSS}</style>",
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{_with_code(one)}</p>" for one in said),
        *_facts(facts),
        *_table(rows),
        "<main>",
        *(_figure(one) for one in pictures),
        "</main>",
    ]
    if settings:
        text = yaml.safe_dump(dict(settings), sort_keys=False)
        parts.append(f"<details><summary>every setting</summary><pre>{escape(text)}</pre></details>")
    return "\n".join([*parts, "</html>"]) + "\n"


def _with_code(text: str) -> str:
    return "".join(
        f"<code>{escape(part)}</code>" if odd % 2 else escape(part) for odd, part in enumerate(text.split("`"))
    )


def _facts(facts: Mapping[str, Any]) -> Iterator[str]:
    if facts:
        yield "<dl>"
        yield from (
            f"<div><dt>{escape(name)}</dt><dd>{escape(_text(value))}</dd></div>" for name, value in facts.items()
        )
        yield "</dl>"


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a table; a value and its deviation stand in one cell."""
    every = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in every if name.removesuffix("_std") == name or name.removesuffix("_std") not in every]
    if not columns:
        return
    heads = "".join(f"<th>{escape(called(name))}</th>" for name in columns)
    yield f"<div class=table><table><thead><tr>{heads}</tr></thead><tbody>"
    for row in rows:
        cells = "".join(f"<td>{escape(_cell(row, name))}</td>" for name in columns)
        yield f"<tr>{cells}</tr>"
    yield "</tbody></table></div>"


def _cell(row: Mapping[str, Any], name: str) -> str:
    spread = row.get(f"{name}_std")
    return _text(row.get(name)) + (f" ± {spread:.2g}" if spread else "")


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _figure(picture: Picture) -> str:
    svg = as_svg(picture.figure, picture.name).replace("<svg", f"<svg role=img aria-label='{escape(picture.title)}'", 1)
    caption = _with_code(picture.caption)
    return f"<figure><h2>{escape(picture.title)}</h2>{svg}<figcaption>{caption}</figcaption></figure>"
