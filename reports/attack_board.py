"""The attacks of a board side by side: what each broke, how near, and at what cost, over all models that it attacked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from advbench.reports import formatting
from advbench.reports.section import Column, Entry, Section, Table
from advbench.reports.standings import RankedBoard
from advbench.results.boards import ranking, seen_attacker
from advbench.results.cells import Cell
from advbench.results.optimality import FEWEST, Envelope, envelope_of
from advbench.results.record import CountsPart
from advbench.results.statistics import TOLERANCE, Values


def attack_board_section(board: RankedBoard) -> Section | None:
    """A table for each group of models that the same attacks attacked; None for fewer than two on targets themselves."""
    if board.threat.norm == "none":
        return None
    groups = [envelopes for envelopes in _groups(board) if len(list(_direct(envelopes[0]))) > 1]
    if not groups:
        return None
    few = any(len(envelopes[0].cells) < FEWEST for envelopes in groups)
    return Section(
        title="Attacks",
        context=board.title,
        anchor=formatting.anchor(f"attacks {board.title}"),
        text="Every attack that was run on the targets themselves, over all models and training seeds that it attacked. "
        "Success is the share of images that the model gets right and the attack breaks within epsilon. The envelope is, "
        "for each image, the nearest adversarial image that any attack of the run found, transfers among them; local "
        "optimality is how much of the area that the envelope takes from the curve of robust accuracy a minimal-norm "
        "attack takes too (Cinà et al. 2025, arXiv:2404.19460). Both are relative: attacks that faced other models, or "
        "stand beside other attacks, are in another table, and their scores cannot be compared.",
        tables=tuple(_table(board, envelopes) for envelopes in groups),
        caveats=(
            *_caveats(groups),
            *((f"Local optimality is left out beside fewer than {FEWEST} attacks.",) if few else ()),
        ),
    )


def _caveats(groups: Sequence[Sequence[Envelope]]) -> Iterator[str]:
    """What to know of budgets, and of images that were visited."""
    cells = [cell for envelopes in groups for envelope in envelopes for cell in envelope.cells]
    budgets = sorted({cell.record.attack["budget"] for cell in cells if "budget" in cell.record.attack})
    for budget in budgets:
        yield (
            f"The budget of each attack is {budget:,} for each image, passes forwards and backwards together; of an image "
            "that has spent them the best one that was asked about counts."
        )
    if any(not np.isnan(envelope.visited).all() for envelopes in groups for envelope in envelopes):
        yield (
            "Visited images stand beside what an attack returned and count nowhere: one that visits clearly more than it "
            "returns keeps its books badly, one that visits no more searches badly."
        )


def _groups(board: RankedBoard) -> list[list[Envelope]]:
    """The models by the attacks that attacked them, each training one envelope."""
    models: dict[tuple[str, int], list[Cell]] = {}
    for cell in ranking(board.cells):
        if cell.examples is not None:
            models.setdefault((cell.record.target["label"], cell.record.seed), []).append(cell)
    groups: dict[str, list[Envelope]] = {}
    for cells in models.values():
        try:
            envelope = envelope_of(cells)
        except ValueError:  # cells of other images: the leaderboard says so
            continue
        groups.setdefault(envelope.digest, []).append(envelope)
    return sorted(groups.values(), key=len, reverse=True)


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """An attack on the models of a group: its cells with their envelopes and their places in these."""

    name: str
    places: Sequence[tuple[Envelope, int]]

    @property
    def cells(self) -> list[Cell]:
        """One for each model."""
        return [envelope.cells[row] for envelope, row in self.places]

    @property
    def minimal(self) -> bool:
        """Whether the attack looks for the nearest."""
        return bool(self.cells[0].record.attack["minimal_norm"])

    def reached(self) -> Values:
        """Distances to the images that the models get right, all models after each other, infinite for failures."""
        found: Values = np.concatenate([envelope.reached[row][envelope.nearest > 0] for envelope, row in self.places])
        return found

    def visited(self) -> Values | None:
        """The same for the best images that the attack asked about; None unless it was watched on every model."""
        found: Values = np.concatenate([envelope.visited[row][envelope.nearest > 0] for envelope, row in self.places])
        return None if np.isnan(found).any() else found

    def per_image(self, total: Callable[[Cell], float | None]) -> float | None:
        """The mean over models of a total over the attacked images, per image; None where it is not known of all."""
        found = [(total(cell), cell.record.counts["examples"]) for cell in self.cells]
        known = [value / n for value, n in found if value is not None and n]
        return float(np.mean(known)) if known and len(known) == len(found) else None


def _direct(envelope: Envelope) -> Iterable[int]:
    """The places of the attacks on the model itself: white-box ones, and those that ask it for labels or scores."""
    for row, cell in enumerate(envelope.cells):
        source = cell.record.source
        if cell.record.matrix == "white-box" or (source is not None and source["kind"] == "queries"):
            yield row


def _table(board: RankedBoard, envelopes: Sequence[Envelope]) -> Table:
    rows: dict[str, list[tuple[Envelope, int]]] = {}
    for envelope in envelopes:
        for row in _direct(envelope):
            attacker = seen_attacker(envelope.cells[row].record)
            name = attacker.attack if attacker.matrix == "white-box" else f"{attacker.attack} ({attacker.matrix})"
            rows.setdefault(name, []).append((envelope, row))
    epsilon, scored = board.threat.epsilon, len(envelopes[0].cells) >= FEWEST
    attacks = sorted((_Row(name, places) for name, places in rows.items()), key=lambda row: _merit(row, epsilon))
    devices = sorted({str(cell.record.measured.get("device", "unknown device")) for row in attacks for cell in row.cells})
    columns = _columns(epsilon, any(row.minimal for row in attacks), scored, devices)
    if any(row.visited() is not None for row in attacks):
        columns += _visits(epsilon, any(row.minimal for row in attacks))
    first = envelopes[0]
    return Table(
        f"Attacks, {board.title}: {formatting.plural(len(envelopes), 'model')}; envelope {first.digest[:12]} of "
        f"{formatting.plural(len(first.cells), 'attacker')}",
        tuple(column for column, _ in columns),
        tuple(tuple(entry(row) for _, entry in columns) for row in attacks),
        filterable=len(attacks) > 8,
    )


def _merit(row: _Row, epsilon: float | None) -> tuple[float, float, str]:
    """Most images broken within epsilon first, of these the nearest."""
    reached = row.reached()
    limit = np.inf if epsilon is None else epsilon * (1 + TOLERANCE)
    broken = np.isfinite(reached) & (reached <= limit)
    return -float(broken.mean()) if len(reached) else 0.0, _median(reached), row.name


def _columns(
    epsilon: float | None, minimal: bool, scored: bool, devices: Sequence[str]
) -> list[tuple[Column, Callable[[_Row], Entry]]]:
    columns: list[tuple[Column, Callable[[_Row], Entry]]] = [
        (Column("Attack", heading=True), lambda row: formatting.text_entry(row.name)),
    ]
    if epsilon is not None:
        limit = epsilon * (1 + TOLERANCE)
        columns += [
            (
                Column("Success", "Share of the images that the models get right which it breaks within epsilon", True),
                lambda row: _share(int((row.reached() <= limit).sum()), len(row.reached())),
            ),
            (
                Column("Of what any broke", "Of the images that some attack of the run broke, the share it broke", True),
                lambda row: _of_any(row, limit),
            ),
        ]
    if minimal:
        columns.append(
            (
                Column("Median distance", "Of a minimal-norm attack, failures at infinity", numeric=True),
                lambda row: formatting.number_entry(*_shown(_median(row.reached()) if row.minimal else None)),
            )
        )
    if minimal and scored:
        columns.append((Column("Local optimality", "Mean over the models, 1 for the envelope itself", True), _optimality))
    return [*columns, *_costs(devices)]


def _visits(epsilon: float | None, minimal: bool) -> list[tuple[Column, Callable[[_Row], Entry]]]:
    """What the attacks asked about, whatever they returned, and what watching that cost."""
    columns: list[tuple[Column, Callable[[_Row], Entry]]] = []
    if epsilon is not None:
        limit = epsilon * (1 + TOLERANCE)

        def share(row: _Row) -> Entry:
            visited = row.visited()
            return _NONE if visited is None else _share(int((visited <= limit).sum()), len(visited))

        title = "Share of the images that the models get right for which it asked about an adversarial image within epsilon"
        columns.append((Column("Visited", title, True), share))
    if minimal:

        def median(row: _Row) -> Entry:
            visited = row.visited() if row.minimal else None
            return formatting.number_entry(*_shown(None if visited is None else _median(visited)))

        title = "Median distance of the nearest adversarial images that it asked about, failures at infinity"
        columns.append((Column("Visited median", title, True), median))

    def cost(row: _Row) -> Entry:
        known = [(cell.record.measured.get("watch_seconds"), cell.record.measured.get("seconds")) for cell in row.cells]
        spent = [(watch, total) for watch, total in known if watch is not None and total]
        if len(spent) < len(known):
            return _NONE
        value = sum(watch for watch, _ in spent) / sum(total for _, total in spent)
        return Entry(formatting.percent(value), order=value)

    columns.append((Column("Cost of watching", "Of the attack's time, what keeping the visited images took", True), cost))
    return columns


_NONE = Entry(formatting.NONE, tone="muted")


def _costs(devices: Sequence[str]) -> list[tuple[Column, Callable[[_Row], Entry]]]:
    """Passes and seconds per image; a column for each device."""

    def passes(total: Callable[[CountsPart], int]) -> Callable[[_Row], Entry]:
        return lambda row: formatting.number_entry(*_shown(row.per_image(lambda cell: total(cell.record.counts))))

    def time(device: str) -> Callable[[_Row], Entry]:
        def entry(row: _Row) -> Entry:
            own = [place for place in row.places if _device(place) == device]
            value = _Row(row.name, own).per_image(lambda cell: cell.record.measured.get("seconds")) if own else None
            return formatting.number_entry(value, formatting.seconds(value))

        return entry

    names = {device: f"Time per image, {device}" if len(devices) > 1 else "Time per image" for device in devices}
    return [
        (
            Column("Forwards", "Forward passes per image, those before a backward among them", True),
            passes(lambda counts: counts["forwards"]),
        ),
        (Column("Backwards", "Backward passes per image", True), passes(lambda counts: counts["backwards"])),
        (
            Column("Queries", "Answers asked for without a gradient, per image", True),
            passes(lambda counts: counts["queries"]),
        ),
        *((Column(name, f"Attack time per image on {device}", True), time(device)) for device, name in names.items()),
    ]


def _device(place: tuple[Envelope, int]) -> str:
    envelope, row = place
    return str(envelope.cells[row].record.measured.get("device", "unknown device"))


def _of_any(row: _Row, limit: float) -> Entry:
    found, known = (sum(counts) for counts in zip(*(envelope.share(i, limit) for envelope, i in row.places), strict=True))
    return _share(found, known)


def _share(found: int, n: int) -> Entry:
    return (
        Entry(formatting.percent(found / n), f"{found:,} of {n:,}", found / n) if n else Entry(formatting.NONE, tone="muted")
    )


def _optimality(row: _Row) -> Entry:
    if not row.minimal:
        return Entry(formatting.NONE, tone="muted")
    value = float(np.mean([envelope.optimality(i) for envelope, i in row.places]))
    return formatting.number_entry(value, f"{value:.3f}")


def _median(reached: Values) -> float:
    return float(np.median(reached)) if len(reached) else float("inf")


def _shown(value: float | None) -> tuple[float | None, str]:
    return value, formatting.number(value)
