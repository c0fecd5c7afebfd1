"""The command, and the report that a fit or a comparison leaves."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deq_lightning.app.messages import Options, UsageError
from deq_lightning.app.report.reading import TABLE, Run, read_comparison, read_run
from deq_lightning.app.runs import from_here, say
from deq_lightning.app.tables import called
from deq_lightning.files import replacing

PAGE = "report.html"
PICTURES = "pictures"  # folder of the PNGs
FACTS = {  # of a run, by what they are called on the page
    "epochs": "epochs",
    "optimizer steps": "steps",
    "seconds": "seconds",
    "seconds a step": "seconds_per_step",
    "parameters": "parameters",
    "MFLOPs a sample": "mflops_per_sample",
    "peak memory, MiB": "peak_memory_mib",
}


def report(args: Sequence[str]) -> None:
    """Write the report of a run or a comparison.

    Args:
        args: what is typed after `report`.

    Raises:
        UsageError: if the options are wrong, or there is no run.
    """
    parser = Options(
        prog="deq_lightning report",
        description="Write what a run, or a comparison, has come to as a page and as pictures.",
        allow_abbrev=False,
    )
    parser.add_argument("--run", required=True, metavar="FOLDER", help="Folder of a run, or of a comparison.")
    parser.add_argument("--output", metavar="FOLDER", help="Where to write. By default into that folder.")
    options = parser.parse_args(args)
    folder = Path(options.run)
    if folder.is_file():
        folder = folder.parent  # a checkpoint was typed
    if not folder.is_dir():
        raise UsageError(f"`--run` must be the folder of a run, and `{folder}` is none.")
    write_report(folder, Path(options.output) if options.output else folder)


def write_report(folder: Path, output: Path | None = None) -> list[Path]:
    """Write the page and the pictures, and return the files of these.

    Args:
        folder: of a run, or of a comparison.
        output: folder for them. None: the same.

    Raises:
        UsageError: if there is no run.
    """
    from deq_lightning.app.report import comparison, pictures
    from deq_lightning.app.report.look import our_look
    from deq_lightning.app.report.page import page

    output = output or folder
    with our_look():
        if (folder / TABLE).is_file():
            table, kinds = read_comparison(folder)
            drawn = comparison.pictures_of(table, kinds)
            said = [f"{table.get('runs')} of {table.get('of')} runs. Figures are means ± deviations over repeats."]
            text = page(folder.name, said, {}, drawn, table["rows"])
        else:
            run = read_run(folder)
            drawn = pictures.pictures_of(run)
            text = page(folder.name, list(_said(run)), dict(_facts(run)), drawn, settings=run.settings)
        (output / PICTURES).mkdir(parents=True, exist_ok=True)
        with replacing(output / PAGE, "w", encoding="utf-8") as file:
            file.write(text)
        files = [output / PICTURES / f"{one.name}.png" for one in drawn]
        for one, path in zip(drawn, files, strict=True):
            with replacing(path) as file:
                one.figure.savefig(file, format="png", dpi=130)
    say(f"report: {from_here(output / PAGE)}")
    return files


def _said(run: Run) -> Iterator[str]:
    """Yield what the page begins with."""
    results, settings = run.results, run.settings
    if not results:
        yield "This run has not come to its end, or is of an earlier version: only its curves are known."
    names = [_class(settings.get("model", {}).get("init_args", {}).get("net")), _class(settings.get("gradient"))]
    data = _class(settings.get("data"))
    if all(names):
        yield f"{names[0]} with {names[1]}" + (f" on {data}." if data else ".")
    if results.get("best") is not None:
        yield f"Best {results['monitor']}: {results['best']:.4g}, in `{results['checkpoint']}`."
    if hardware := results.get("hardware"):
        versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        yield f"{hardware['devices']} x {hardware['name']} ({hardware['device']}), {hardware['precision']}; {versions}."


def _class(settings: Any) -> str:
    return str(settings.get("class_path", "")).rpartition(".")[2] if isinstance(settings, dict) else ""


def _facts(run: Run) -> Iterator[tuple[str, Any]]:
    """Yield the figures of the page."""
    for name, value in run.results.get("test", {}).items():
        yield f"test {called(name)}", value
    for name, key in FACTS.items():
        if run.results.get(key) is not None:
            yield name, run.results[key]
