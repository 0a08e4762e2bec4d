"""The sections behind the leaderboard: all cells, failures, costs and provenance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from advbench.reports import formatting
from advbench.reports.cells import Cells
from advbench.reports.section import Column, Entry, Section, Table, drop_constant
from advbench.results.cells import Cell
from advbench.results.record import Record
from advbench.results.statistics import CellStatistics, Distortion

_PLACE = (
    Column("Matrix", choice=True),
    Column("Target", heading=True, choice=True),
    Column("Attack", choice=True),
    Column("Source"),
    Column("Data and threat", choice=True),
    Column("Seed", numeric=True),
)
_DROPPED = ("Data and threat", "Seed")
_RATES = (
    Column("Clean", "Accuracy on the clean images", numeric=True),
    Column("Robust", "Robust accuracy at the record's epsilon", numeric=True),
    Column("Success, all", "Share of all images that are wrong after the attack, clean errors among them", numeric=True),
    Column("Success, clean-correct", "Share of the clean-correct images that the attack made wrong", numeric=True),
    Column("Median distance", "Over clean-correct images, failures at infinity; minimal-norm attacks only", numeric=True),
    Column("Mean RMS", "Over successes; a survivors' figure if fewer than 99% succeed", numeric=True),
    Column("Mean |r|/|x|", "Over successes; l2 of the perturbation over l2 of the image", numeric=True),
)
_COSTS = (
    Column("Time per image", numeric=True),
    Column("Forwards", "Per image", numeric=True),
    Column("Backwards", "Per image", numeric=True),
    Column("Queries", "Per image", numeric=True),
    Column("Peak memory", numeric=True),
)


def failure_section(cells: Cells) -> Section | None:
    """The cells that have no numbers, and why; None if all have."""
    rows = [_failure(cell.record) for cell in cells.unscored]
    rows += [
        (
            Entry("missing", order="missing", tone="warning"),
            *[Entry(formatting.NONE, tone="muted")] * 6,
            formatting.text_entry(f"no record {key}"),
        )
        for key in cells.missing
    ]
    if not rows:
        return None
    columns = (Column("Status", choice=True), *_PLACE, Column("Reason"))
    counts = ", ".join(
        f"{sum(row[0].text == status for row in rows)} {status}"
        for status in ("failed", "skipped", "missing")
        if any(row[0].text == status for row in rows)
    )
    return Section(
        title="Cells without numbers",
        anchor="failed",
        text=f"These cells never count as robust: {counts}.",
        tables=(Table("Failed, skipped and missing cells", columns, tuple(rows), filterable=len(rows) > 8),),
    )


def all_cells_section(cells: Cells) -> Section:
    """A row for every scored cell."""
    rows = tuple((*_place(cell.record), *_rates(cell.statistics)) for cell in cells.scored if cell.statistics is not None)
    return Section(
        title="All cells",
        anchor="cells",
        text="Rates over all images with 95% intervals: Wilson's for deterministic models, a bootstrap over images for "
        "stochastic ones.",
        tables=(drop_constant(Table("All scored cells", (*_PLACE, *_RATES), rows, filterable=True), _DROPPED),),
    )


def cost_sections(cells: Cells) -> list[Section]:
    """What the attacks cost, in one table for each device."""
    devices: dict[str, list[Cell]] = {}
    for cell in cells.scored:
        devices.setdefault(str(cell.record.measured.get("device", "unknown device")), []).append(cell)
    if not devices:
        return []
    tables = tuple(_cost_table(device, group) for device, group in sorted(devices.items()))
    return [
        Section(
            title="Costs",
            anchor="costs",
            text="Measured on the attack alone: without loading, warm-up and scoring. Times of different devices are not "
            "comparable. Images of the transfer matrix are crafted once for each source.",
            tables=tables,
        )
    ]


def provenance_section(cells: Cells) -> Section:
    """Versions, devices, data and seeds, and every component with every argument."""
    records = [cell.record for cell in cells.cells]
    return Section(
        title="Provenance",
        anchor="provenance",
        text="What these numbers are made of.",
        tables=(
            Table("Run", (Column("What", heading=True), Column("Value")), tuple(_facts(records))),
            Table("Targets", _TARGET_COLUMNS, tuple(_targets(records))),
            Table("Attacks", _ATTACK_COLUMNS, tuple(_attacks(records))),
        ),
    )


_TARGET_COLUMNS = (
    Column("Target", heading=True),
    Column("Defense"),
    Column("Architecture"),
    Column("Kind"),
    Column("Weights (SHA-256) by seed"),
)
_ATTACK_COLUMNS = (
    Column("Attack", heading=True),
    Column("Configuration"),
    Column("Source hash"),
    Column("Kind"),
)


def _failure(record: Record) -> tuple[Entry, ...]:
    status = "failed" if record.status == "error" else record.status
    return (Entry(status, order=status, tone="warning"), *_place(record), formatting.text_entry(record.reason))


def _place(record: Record) -> tuple[Entry, ...]:
    threat = f"{record.dataset['name']}, {formatting.threat(record.threat['norm'], record.threat['epsilon'])}"
    if record.threat["box"] is None:
        threat += ", no box"
    return (
        formatting.text_entry(record.matrix),
        formatting.text_entry(record.target["label"]),
        formatting.text_entry(record.attack["label"]),
        formatting.text_entry(formatting.source(record)),
        formatting.text_entry(threat),
        Entry(str(record.seed), order=record.seed),
    )


def _rates(statistics: CellStatistics) -> tuple[Entry, ...]:
    return (
        formatting.share_entry(statistics.clean_accuracy),
        formatting.share_entry(statistics.robust_accuracy),
        formatting.share_entry(statistics.success_all),
        formatting.share_entry(statistics.success_clean_correct),
        *_distortion(statistics.distortion),
    )


def _distortion(distortion: Distortion | None) -> tuple[Entry, Entry, Entry]:
    if distortion is None:
        nothing = Entry(formatting.NONE, tone="muted")
        return nothing, nothing, nothing
    note = f"{formatting.number(distortion.median.low)}–{formatting.number(distortion.median.high)}"
    survivors = "survivors" if distortion.survivors else ""
    rms, ratio = (
        Entry(formatting.number(value), survivors if value == value else "", None if value != value else value)
        for value in (distortion.mean_rms, distortion.mean_ratio)
    )
    return Entry(formatting.number(distortion.median.value), note, distortion.median.value), rms, ratio


def _cost_table(device: str, cells: Sequence[Cell]) -> Table:
    beside = sorted(
        {(cell.record.measured.get("threads"), cell.record.measured.get("tasks_beside")) for cell in cells}, key=str
    )
    settings = "; ".join(
        f"{formatting.plural(threads, 'thread')}, {formatting.plural(tasks, 'task')} beside"
        for threads, tasks in beside
        if threads is not None and tasks is not None
    )
    rows = tuple((*_place(cell.record), *_costs(cell)) for cell in cells)
    caption = f"Costs on {device}" + (f" ({settings})" if settings else "")
    return drop_constant(Table(caption, (*_PLACE, *_COSTS), rows, filterable=len(rows) > 8), _DROPPED)


def _costs(cell: Cell) -> tuple[Entry, ...]:
    statistics, memory = cell.statistics, cell.record.measured.get("peak_memory_bytes")
    values = (
        [statistics.seconds, statistics.forwards, statistics.backwards, statistics.queries] if statistics else [None] * 4
    )
    words = [formatting.seconds(values[0]), *(formatting.number(value) for value in values[1:])]
    entries = (formatting.number_entry(value, word) for value, word in zip(values, words, strict=True))
    return (*entries, formatting.number_entry(memory, formatting.megabytes(memory)))


def _facts(records: Sequence[Record]) -> Iterable[tuple[Entry, Entry]]:
    """What all records have in common, or each of the values that occur."""
    statuses = {status: sum(record.status == status for record in records) for status in ("ok", "error", "skipped")}
    yield Entry("cells"), Entry(", ".join(f"{count} {status}" for status, count in statuses.items() if count) or "none")
    data = {
        f"{record.dataset['name']}, {record.dataset['n']:,} images of the {record.dataset['split']} split, "
        f"fingerprint {record.dataset['fingerprint'][:16]}": None
        for record in records
    }
    yield Entry("data"), Entry("; ".join(data))
    yield Entry("seeds"), Entry(", ".join(map(str, sorted({record.seed for record in records}))))
    for name in ("device", "threads", "tasks_beside"):
        values = _values(record.measured.get(name) for record in records)
        if values:
            yield Entry(name.replace("_", " ")), Entry(values)
    environments = [record.measured["environment"] for record in records if _is_mapping(record.measured.get("environment"))]
    for name in dict.fromkeys(name for environment in environments for name in environment):
        values = _values(environment.get(name) for environment in environments)
        if values:
            yield Entry(name), Entry(values)


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _values(values: Iterable[object]) -> str:
    return "; ".join(dict.fromkeys(str(value) for value in values if value is not None))


def _targets(records: Sequence[Record]) -> Iterable[tuple[Entry, ...]]:
    seen: dict[tuple[str, str, str, str], dict[int, str]] = {}
    for record in records:
        target = record.target
        kind = "stochastic" if target["stochastic"] else "deterministic"
        defense, architecture = (
            formatting.component(part["name"], part["arguments"]) for part in (target["defense"], target["architecture"])
        )
        row = (target["label"], defense, architecture, kind)
        weights = seen.setdefault(row, {})
        if record.weights_sha256:
            weights[record.seed] = record.weights_sha256[:16]
    for row, weights in sorted(seen.items()):
        hashes = ", ".join(f"{seed}: {digest}" for seed, digest in sorted(weights.items()))
        yield (*map(formatting.text_entry, row), formatting.text_entry(hashes))


def _attacks(records: Sequence[Record]) -> Iterable[tuple[Entry, ...]]:
    kinds: dict[tuple[str, str, str], set[str]] = {}
    for record in records:
        attack = record.attack
        row = (attack["label"], formatting.component(attack["name"], attack["arguments"]), attack["source_hash"][:16])
        budget = "minimal norm" if attack["minimal_norm"] else "fixed epsilon"
        kind = ", ".join(dict.fromkeys((str(attack.get("family", budget)), budget)))
        kinds.setdefault(row, set()).add(f"{kind} ({record.matrix})")
    for row, variants in sorted(kinds.items()):
        yield tuple(map(formatting.text_entry, (*row, ", ".join(sorted(variants)))))
