"""A static site of the leaderboards: an index, a page for each model, the full report and the data, all from records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from advbench.files import write_atomically
from advbench.reading import json_of, text_of
from advbench.reports import formatting
from advbench.reports.cells import Cells
from advbench.reports.export import csv
from advbench.reports.html import render, to_pages, with_long
from advbench.reports.leaderboard import leaderboard_section
from advbench.reports.merge import run_names
from advbench.reports.model_page import Model, model_sections, models
from advbench.reports.reproduce import RerunRecipe, reproduction
from advbench.reports.robustbench import NO_ENTRIES, NORMS, model_infos
from advbench.reports.section import Section, Table, drop_constant
from advbench.reports.sections import sections, summary
from advbench.reports.standings import RankedBoard, ranked_boards
from advbench.reports.step_texts import to_json
from advbench.reports.steps import FILES as STEPS_FILES
from advbench.reports.steps import history_page
from advbench.reports.write import read
from advbench.results.entries import ModelEntry, facts_of_model
from advbench.results.gate.steps import VersionHistory
from advbench.results.statistics import OverSeeds

TITLE = "Adversarial robustness leaderboard"
_MANIFEST = ".advbench-site.json"
_LARGEST_MANIFEST = 2**25
_PAGES = ("index.html", "report.html", "history.html", ".nojekyll")
_FOLDERS = ("models", "data", "report")
_SUFFIXES = (".html", ".csv", ".json", ".toml")
_COMPARED = 3
"""How many rows a table must have before it is worth a search field and a choice of columns."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of the site's data, and what it holds. one_of_many: whether it is one of a folder full of them."""

    path: str
    content: str
    what: str
    one_of_many: bool = False


def write_site(
    folders: Mapping[Path, Sequence[str] | None],
    to: Path,
    *,
    title: str | None,
    settings: Mapping[Path, str],
    history: VersionHistory | None = None,
    entries: Mapping[str, ModelEntry] = NO_ENTRIES,
) -> list[Path]:
    """Write the site of output folders into `to`; returns its files.

    folders: as in `advbench.reports.write.read`. title: of the site. settings: of the runs as TOML, by folder. history: of a
    baseline, for a page of its own. entries: what is known of models, by label or defense. Files of an earlier publication
    that this one has not are removed, and no others.
    """
    names = run_names(map(str, folders)) if len(folders) > 1 else [""]
    by_origin = dict(zip(names, settings.values(), strict=True))
    files = site(read(folders), title=title or TITLE, settings=by_origin, history=history, entries=entries)
    manifest = to / _MANIFEST
    for name in set(_listed(manifest)) - set(files):
        (to / name).unlink(missing_ok=True)
    for name, content in files.items():
        write_atomically(to / name, content)
    write_atomically(manifest, json.dumps(sorted(files), indent=1) + "\n")
    return [to / name for name in files]


def site(
    cells: Cells,
    *,
    title: str,
    settings: Mapping[str, str],
    history: VersionHistory | None = None,
    entries: Mapping[str, ModelEntry] = NO_ENTRIES,
) -> dict[str, str]:
    """The site's files by path.

    settings: of the runs as TOML, by the cells' origin. history: of a baseline. entries: of models, by label or defense.
    """
    boards = ranked_boards(cells)
    listed = models(boards, cells.cells)
    labels = [model.label for model in listed]
    slugs = dict(zip(labels, formatting.slugs(labels), strict=True))
    pages = {label: f"models/{slug}.html" for label, slug in slugs.items()}
    past, past_data = _history(history, title)
    data = [*_data(cells, boards, entries), *past_data]
    files = {
        "index.html": _index(cells, boards, title, pages, data),
        **past,
        **to_pages(sections(cells), title=title, summary=summary(cells), page="report.html", cells=len(cells.cells)),
        ".nojekyll": "",
        **{file.path: file.content for file in data},
    }
    for model in listed:
        again = _reproductions(model, settings, slugs[model.label])
        files |= {f"data/{name}": recipe.settings for name, recipe in again if recipe.settings}
        files[pages[model.label]] = _model(model, title, again, entries)
    return files


def _history(history: VersionHistory | None, title: str) -> tuple[dict[str, str], list[DataFile]]:
    """The page of a history by its path, and its data; nothing without one."""
    if history is None:
        return {}, []
    page, data = STEPS_FILES
    file = DataFile(f"data/{data}", to_json(history), "the baseline by version: every number and the gate's verdicts")
    return {page: history_page(history, site=title, data=file.path)}, [file]


def _index(
    cells: Cells, boards: Sequence[RankedBoard], title: str, pages: Mapping[str, str], data: Sequence[DataFile]
) -> str:
    listed = [
        (board.title, _linked(leaderboard_section(board, missing=len(cells.missing)), board, pages)) for board in boards
    ]
    ranked = {standing.label for board in boards for standing in board.standings}
    others = {label: page for label, page in pages.items() if label not in ranked}
    return render(
        "index.html",
        with_long("tables.js", "site.js", sections=[section for _, section in listed]),
        title=title,
        summary=summary(cells),
        boards=listed,
        others=others,
        data=data,
        history=any(file.path == f"data/{STEPS_FILES[1]}" for file in data),
    )


def _linked(section: Section, board: RankedBoard, pages: Mapping[str, str]) -> Section:
    """A board's section whose rows lead to the models' pages, and whose columns can be chosen."""
    table, *rest = section.tables
    table = drop_constant(table, ("Architecture",))
    heading = next(i for i, column in enumerate(table.columns) if column.heading)
    rows = tuple(
        tuple(replace(entry, link=pages[standing.label]) if i == heading else entry for i, entry in enumerate(row))
        for row, standing in zip(table.rows, board.standings, strict=True)
    )
    text = f"Ranked on the same {formatting.plural(board.threat.n, 'image')} of the {board.threat.split} split."
    return replace(section, text=text, tables=(replace(table, rows=rows, selectable=True, filterable=False), *rest))


def _model(model: Model, title: str, again: Sequence[tuple[str, RerunRecipe]], entries: Mapping[str, ModelEntry]) -> str:
    record = model.cells[0].record
    target = record.target
    weights = {f"{cell.record.seed}": cell.record.weights_sha256[:16] for cell in model.cells if cell.record.weights_sha256}
    entry = facts_of_model(entries, model.label, target["defense"]["name"])
    facts = [
        *_entry_facts(entry),
        ("Defense", _component(target["defense"]["name"], target["defense"]["arguments"])),
        ("Architecture", _component(target["architecture"]["name"], target["architecture"]["arguments"])),
        ("Kind", "stochastic" if target["stochastic"] else "deterministic"),
        ("Weights (SHA-256)", ", ".join(f"seed {seed}: {digest}" for seed, digest in sorted(weights.items()))),
        ("Device", ", ".join(dict.fromkeys(str(cell.record.measured.get("device", "")) for cell in model.cells))),
    ]
    sections = [_searchable(section) for section in model_sections(model)]
    return render(
        "model.html",
        with_long("tables.js", sections=sections),
        title=model.label,
        site=title,
        summary=[(name, value) for name, value in facts if value],
        sections=sections,
        again=again,
    )


def _entry_facts(entry: ModelEntry) -> list[tuple[str, str]]:
    """What is known of a model, for its page."""
    data = {True: "yes", False: "no", None: ""}[entry.additional_data]
    return [
        ("Paper", entry.paper),
        ("Authors", entry.authors),
        ("Venue", entry.venue),
        ("Link", entry.link),
        ("Additional data", data),
        ("Parameters", "" if entry.parameters is None else f"{entry.parameters:,}"),
    ]


def _searchable(section: Section) -> Section:
    """The section with fields to search and choose only at tables that are long enough for them."""

    def short(table: Table) -> Table:
        return replace(table, filterable=False, selectable=False) if len(table.rows) < _COMPARED else table

    return replace(section, tables=tuple(map(short, section.tables)))


def _component(name: str, arguments: Mapping[str, object]) -> str:
    """A component as the page of a model names it, without brackets if it has no arguments."""
    return formatting.component(name, arguments) if arguments else name


def _reproductions(model: Model, settings: Mapping[str, str], slug: str) -> list[tuple[str, RerunRecipe]]:
    """How to run a model's cells again, a command for each run that it was part of, with its settings' file name."""
    origins = list(dict.fromkeys(cell.origin for cell in model.cells))
    return [
        (
            f"run-{slug}{f'-{place}' if len(origins) > 1 else ''}.toml",
            reproduction([cell.record for cell in model.cells if cell.origin == origin], settings.get(origin, "")),
        )
        for place, origin in enumerate(origins, start=1)
    ]


def _data(cells: Cells, boards: Sequence[RankedBoard], entries: Mapping[str, ModelEntry]) -> list[DataFile]:
    standings = json.dumps([_board(board) for board in boards], indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    files = [
        DataFile("data/cells.csv", csv(cells), "every cell of the matrices, failed ones among them: a row each"),
        DataFile("data/leaderboard.json", standings, "the boards: ranks, intervals, flags, the value of every strategy"),
    ]
    for board in boards:
        if board.threat.norm in NORMS and board.threat.epsilon is not None:
            files += [
                DataFile(f"data/model_info/{path}", info, "RobustBench's model_info", one_of_many=True)
                for path, info in model_infos(board, entries).items()
            ]
    return files


def _board(board: RankedBoard) -> dict[str, object]:
    threat = board.threat
    return {
        "title": board.title,
        "threat": {"norm": threat.norm, "epsilon": threat.epsilon},
        "dataset": {"name": threat.dataset, "split": threat.split, "n": threat.n, "fingerprint": threat.fingerprint},
        "standings": [
            {
                "model": standing.label,
                "defense": standing.defense,
                "architecture": standing.architecture,
                "ranks": list(standing.ranks) if standing.ranks else None,
                "robust_accuracy": _estimate(standing.robust),
                "clean_accuracy": _estimate(standing.clean),
                "upper_bound_only": standing.rank is None or bool(standing.flags),
                "by_strategy": {str(attacker): value for attacker, value in sorted(standing.by_attacker.items())},
                "seconds_per_image": dict(standing.seconds),
                "seeds": list(standing.seeds),
                "lacks": list(standing.lacks),
                "flags": [{"name": flag.name, "measured": flag.measured, "n": flag.n} for flag in standing.flags],
            }
            for standing in board.standings
        ],
        "caveats": list(board.caveats),
    }


def _estimate(rate: OverSeeds | None) -> dict[str, object] | None:
    if rate is None:
        return None
    estimate = rate.estimate
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "by_seed": list(rate.by_seed)}


def _listed(manifest: Path) -> list[str]:
    """The files of an earlier publication, by their path in the site; what no publication writes is none of them."""
    try:
        names = json_of(text_of(manifest, _LARGEST_MANIFEST))
    except (OSError, ValueError):
        return []
    return [name for name in names if isinstance(name, str) and _is_ours(name)] if isinstance(names, list) else []


def _is_ours(name: str) -> bool:
    """Whether a name in a manifest, which anything may have written, is a file of a site."""
    path = Path(name)
    inside = not path.is_absolute() and ".." not in path.parts
    return inside and (name in _PAGES or (path.parts[0] in _FOLDERS and path.suffix in _SUFFIXES))
