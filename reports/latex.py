"""Boards for a paper: a LaTeX table for each, a paragraph on how it was measured, and BibTeX of what is cited."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from advbench.reports import formatting
from advbench.reports.cells import Cells
from advbench.reports.standings import RankedBoard, Standing, ranked_boards
from advbench.results.entries import ModelEntry, facts_of_model
from advbench.results.statistics import OverSeeds

FILES = ("leaderboard.tex", "leaderboard.bib")
_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "≤": r"$\leq$", "–": "--", "∞": r"$\infty$"},
}
_YEAR = re.compile(r"\b(?:19|20)\d{2}\b")


def latex(cells: Cells, entries: Mapping[str, ModelEntry]) -> dict[str, str]:
    """The files by name: tables (of the package booktabs) with their paragraphs, and the bibliography that they cite.

    entries: of models by label or defense, and of attacks as ``attack NAME``; without title and authors none is cited.
    Raises ValueError if there is no board.
    """
    boards = ranked_boards(cells)
    if not boards:
        raise ValueError("Expected a board for LaTeX, a norm's epsilon and a pixel range, got none")
    cited: dict[str, ModelEntry] = {}
    texts = [_board(board, entries, cited) for board in boards]
    head = "% Needs \\usepackage{booktabs}; cites leaderboard.bib.\n"
    bibliography = "\n".join(_bibtex(key, entry) for key, entry in sorted(cited.items()))
    return dict(zip(FILES, (head + "\n".join(texts), bibliography), strict=True))


def escaped(text: str) -> str:
    """Text that LaTeX shows as it is.

    >>> escaped("pgd_linf & 50%")
    'pgd\\\\_linf \\\\& 50\\\\%'
    """
    return "".join(_SPECIAL.get(character, character) for character in text)


def _board(board: RankedBoard, entries: Mapping[str, ModelEntry], cited: dict[str, ModelEntry]) -> str:
    rows = [_row(board, standing, entries, cited) for standing in board.standings]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{Clean and worst-case robust accuracy in percent, {escaped(board.title)}.}}",
        rf"\label{{tab:{formatting.anchor(board.title)}}}",
        r"\begin{tabular}{lrrl}",
        r"\toprule",
        r"Model & Clean & Robust & Strongest attack \\",
        r"\midrule",
        *rows,
        *(r"\bottomrule", r"\end{tabular}", r"\end{table}"),
        "",
        _measured(board, entries, cited),
        "",
    ]
    return "\n".join(lines)


def _row(board: RankedBoard, standing: Standing, entries: Mapping[str, ModelEntry], cited: dict[str, ModelEntry]) -> str:
    defense = str(board.cells_of[standing.label][0].record.target["defense"]["name"])
    name = escaped(standing.label) + _cite(defense, facts_of_model(entries, standing.label, defense), cited)
    bound = r"$\leq$ " if standing.robust is not None and (standing.rank is None or standing.flags) else ""
    weakest = escaped(str(standing.weakest or ""))
    return rf"{name} & {_percent(standing.clean)} & {bound}{_percent(standing.robust)} & {weakest} \\"


def _percent(rate: OverSeeds | None) -> str:
    if rate is None:
        return "--"
    estimate = rate.estimate
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _measured(board: RankedBoard, entries: Mapping[str, ModelEntry], cited: dict[str, ModelEntry]) -> str:
    """How the numbers of a board came about, in a paragraph."""
    threat = board.threat
    seeds = sorted({seed for standing in board.standings for seed in standing.seeds})
    versions = sorted({str(cell.record.measured.get("environment", {}).get("advbench", "unknown")) for cell in board.cells})
    bounds = any(standing.flags or standing.rank is None for standing in board.standings)
    sentences = [
        f"Robust accuracy is the share of the {threat.n:,} images of the {threat.split} split of {threat.dataset} that a "
        f"model classifies correctly under every attack within {formatting.threat(threat.norm, threat.epsilon)}, image by "
        "image; images that it misclassifies without an attack count as not robust.",
        "Brackets hold 95% intervals over the images.",
        *([f"Numbers are means over the training seeds {', '.join(map(str, seeds))}."] if len(seeds) > 1 else []),
        *(["Numbers with ≤ are upper bounds: cells are missing, or gradients show symptoms of masking."] if bounds else []),
    ]
    attacks = ", ".join(_attacks(board, entries, cited))
    by = f"Measured by advbench {', '.join(versions)}."
    return " ".join([*map(escaped, sentences), f"The attacks are {attacks}.", escaped(by)])


def _attacks(board: RankedBoard, entries: Mapping[str, ModelEntry], cited: dict[str, ModelEntry]) -> Iterable[str]:
    """The attacks of a board with their arguments, cited."""
    attacks = {cell.record.attack["label"]: (cell.record.attack, set[str]()) for cell in board.cells}
    for cell in board.cells:
        attacks[cell.record.attack["label"]][1].add(cell.record.matrix)
    for attack, matrices in attacks.values():
        name = str(attack["name"])
        told = escaped(formatting.component(name, attack["arguments"]))
        entry = facts_of_model(entries, f"attack {name}", "")
        yield rf"\texttt{{{told}}} ({', '.join(sorted(matrices))})" + _cite(name, entry, cited)


def _cite(name: str, entry: ModelEntry, cited: dict[str, ModelEntry]) -> str:
    """A citation, under one key for one work; nothing if the work is unknown."""
    if not (entry.paper or entry.authors):
        return ""
    work = ModelEntry(paper=entry.paper, authors=entry.authors, venue=entry.venue, link=entry.link)
    key = next((key for key, other in cited.items() if other == work), None) or _key(name, cited)
    cited[key] = work
    return rf"~\cite{{{key}}}"


def _key(name: str, taken: Mapping[str, ModelEntry]) -> str:
    *_, key = formatting.slugs([*taken, name])
    return key


def _bibtex(key: str, entry: ModelEntry) -> str:
    year = _YEAR.search(entry.venue) or _YEAR.search(entry.authors)
    authors = _YEAR.sub("", entry.authors).strip().replace(" et al.", " and others")
    found = {
        "title": f"{{{escaped(entry.paper)}}}" if entry.paper else "",
        "author": escaped(authors),
        "howpublished": escaped(entry.venue),
        "year": year[0] if year else "",
        "url": entry.link,
    }
    lines = _fields(found)
    return "\n".join([f"@misc{{{key},", *lines, "}"]) + "\n"


def _fields(found: Mapping[str, str]) -> Sequence[str]:
    return [f"  {name} = {{{value}}}," for name, value in found.items() if value]
