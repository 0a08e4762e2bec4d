"""The gauntlet's command: ``python -m tests.gauntlet train|references|run|board`` from the root of the repository.

``train`` makes the models, ``references`` runs the peers where their outcomes are missing, ``run`` runs ours and prints both
side by side; it exits with 1 where ours misses a bar. ``board`` runs all registered attacks and the peers', or those of
``--attack`` by their full names, and writes what each broke, visited and cost to ``board.md``. Each takes ``--half``,
``--model``, ``--norm`` and ``--attack``, lists separated by commas. Every run on the judging half is counted in RUNS.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from advbench.config import make_config
from tests.gauntlet.models import MODELS, Recipe, recipe_of, third_lot
from tests.gauntlet.pairs import PAIRS
from tests.gauntlet.references import applies, book_of, fill, load, save
from tests.gauntlet.table import Row, again, keep, markdown, rows_of
from tests.gauntlet.training import model_of, problem

RUNS = Path(__file__).with_name("RUNS.md")


def main(arguments: list[str]) -> int:
    """Run a command; the exit status."""
    chosen = _parser().parse_args(arguments)
    return {"train": train, "references": references, "run": run, "board": board}[chosen.command](chosen)


def train(chosen: argparse.Namespace) -> int:
    """Make the models that the cache lacks."""
    for recipe in recipes(chosen):
        start = time.perf_counter()
        model_of(recipe)
        print(f"{recipe.name}: {time.perf_counter() - start:.0f} s", flush=True)
    return 0


def references(chosen: argparse.Namespace) -> int:
    """Run the references that are missing; every one is saved at once."""
    for recipe in recipes(chosen):
        faced = problem(recipe)
        for norm, attack in cells(chosen, recipe):
            if not applies(attack, faced, norm):
                continue
            book = book_of(load(), faced)
            for key in fill(faced, book, norm, attack, chosen.seed):
                outcome = book.outcomes[key]
                broken = int(outcome.distances.isfinite().sum())
                told = f"{broken} of {len(faced.x)} broken, median {outcome.distances.median():.4g}, {outcome.seconds:.0f} s"
                print(f"{recipe.name} {norm} {attack} {key.library}: {told}", flush=True)
            if book.outcomes:
                save({**load(), recipe.name: book})
    return 0


def run(chosen: argparse.Namespace) -> int:
    """Run ours and print the table; 1 where ours misses a bar."""
    rows: list[Row] = []
    books = load()
    judged = [recipe.name for recipe in recipes(chosen) if recipe.half != "choosing"]
    if judged:
        _count(judged, chosen)
    for recipe in recipes(chosen):
        faced = problem(recipe)
        for norm, attack in cells(chosen, recipe):
            if not applies(attack, faced, norm):
                continue
            for row in rows_of(faced, book_of(books, faced), attack, norm, chosen.seed):
                note = again(faced, row, chosen.seeds) if chosen.seeds > 1 else ""
                keep(Path(chosen.out), row, chosen.seed, note)
                told = "LOSES" if row.loses else "holds"
                print(f"{recipe.name} {norm} {attack} beside {row.library}: {told} {note}", file=sys.stderr, flush=True)
                rows.append(row)
    print(markdown(rows))
    if RUNS.exists():
        print(f"\nRuns on the judging half so far: {sum(line.startswith('- ') for line in RUNS.read_text().splitlines())}.")
    return int(any(row.loses for row in rows))


def board(chosen: argparse.Namespace) -> int:
    """Run every attack on the models, and write the attack board and the price of watching."""
    from tests.gauntlet.board import markdown, priced, prices, standing

    found, costs, books, folder = [], [], load(), Path(chosen.out)
    judged = [recipe.name for recipe in recipes(chosen) if recipe.half != "choosing"]
    if judged:
        _count(judged, chosen)
    attacks = [str(spec) for spec in make_config(attack=chosen.attack).attack or ()] if chosen.attack else []
    for recipe in recipes(chosen):
        faced = problem(recipe, chosen.images)
        for norm in recipe.radii:
            if chosen.norm not in ("", norm):
                continue
            epsilon = recipe.radii[norm] or books[recipe.name].radii[norm]
            begun = time.perf_counter()
            found.append(standing(faced, norm, epsilon, attacks, seed=chosen.seed))
            costs.append(priced(f"{recipe.name} {norm}", prices(faced, norm, epsilon)))
            print(f"{recipe.name} {norm}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    text = "\n\n".join([markdown(found, "Attacks on the gauntlet's models"), "## The price of watching", *costs]) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "board.md").write_text(text)
    print(text)
    return 0


def recipes(chosen: argparse.Namespace) -> list[Recipe]:
    """The models of the command, of the third lot only where they are named or their half is."""
    if chosen.model:
        return [recipe_of(name) for name in chosen.model.split(",")]
    lot = third_lot() if chosen.half == "third" else list(MODELS.values())
    return [recipe for recipe in lot if chosen.half in ("all", recipe.half)]


def cells(chosen: argparse.Namespace, recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Norms and attacks of the command, minimal-norm attacks first, as radii come from them."""
    attacks = chosen.attack.split(",") if chosen.attack else sorted(PAIRS, key=lambda name: not PAIRS[name].minimal)
    for norm in recipe.radii:
        if chosen.norm in ("", norm):
            yield from ((norm, attack) for attack in attacks)


def _count(judged: list[str], chosen: argparse.Namespace) -> None:
    """Tell RUNS.md that the judging half is run."""
    line = f"- {time.strftime('%Y-%m-%d %H:%M')} {', '.join(judged)}; attacks: {chosen.attack or 'all'}\n"
    with RUNS.open("a") as file:
        file.write(line)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.gauntlet", description=__doc__)
    parser.add_argument("command", choices=("train", "references", "run", "board"))
    parser.add_argument("--half", choices=("choosing", "judging", "third", "all"), default="choosing")
    parser.add_argument("--model", default="", help="names, separated by commas; the half does not count then")
    parser.add_argument("--attack", default="", help="names, separated by commas")
    parser.add_argument("--norm", default="")
    parser.add_argument("--seed", type=int, default=0, help="of both; references are kept by seed")
    parser.add_argument("--seeds", type=int, default=1, help="so many seeds of both for images on which outcomes differ")
    parser.add_argument("--out", default="advbench-out/gauntlet", help="the folder for rows.jsonl and board.md")
    parser.add_argument("--images", type=int, default=None, help="of the board: so many images of each model")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
