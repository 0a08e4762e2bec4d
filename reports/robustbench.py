"""Boards as RobustBench keeps them: one model_info JSON per model (Croce et al. 2021, arXiv:2010.09670)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType

from advbench.reports import formatting
from advbench.reports.standings import RankedBoard, Standing
from advbench.results.boards import Attacker
from advbench.results.entries import ModelEntry, facts_of_model

NORMS = {"linf": "Linf", "l2": "L2"}
"""RobustBench's names of the threats that it has."""
NO_ENTRIES: Mapping[str, ModelEntry] = MappingProxyType({})


def model_infos(board: RankedBoard, entries: Mapping[str, ModelEntry] = NO_ENTRIES) -> dict[str, str]:
    """The model_info of every ranked model, by its path under ``model_info/``.

    ``external`` is this board's worst case; ``autoattack_acc`` is there if `autoattack` itself was run in the white-box
    matrix, and ``unreliable`` says that the evaluation is flagged. Paper, authors, venue, link and further data are those of
    `entries`, by label or defense; of what is unknown the fields are empty. Raises ValueError for a norm that RobustBench
    has not.
    """
    threat = board.threat
    if threat.norm not in NORMS or threat.epsilon is None:
        raise ValueError(f"Expected a linf or l2 board with an epsilon for RobustBench, got {board.title}")
    ranked = [standing for standing in board.standings if standing.rank is not None]
    folder = f"{formatting.anchor(threat.dataset)}/{NORMS[threat.norm]}"
    names = formatting.slugs(
        f"{standing.label} {formatting.epsilon_text(threat.epsilon)} {threat.run}".strip() for standing in ranked
    )
    infos = (_info(board, standing, entries) for standing in ranked)
    return {f"{folder}/{name}.json": info for name, info in zip(names, infos, strict=True)}


def _info(board: RankedBoard, standing: Standing, entries: Mapping[str, ModelEntry]) -> str:
    assert standing.robust is not None
    assert standing.clean is not None
    assert board.threat.epsilon is not None
    defense = str(board.cells_of[standing.label][0].record.target["defense"]["name"])
    entry = facts_of_model(entries, standing.label, defense)
    info: dict[str, object] = {
        "link": entry.link,
        "name": entry.paper or standing.defense,
        "authors": entry.authors,
        "additional_data": entry.additional_data,
        "number_forward_passes": None if _stochastic(board, standing) else 1,
        "dataset": board.threat.dataset,
        "venue": entry.venue,
        "architecture": standing.architecture,
        "eps": formatting.epsilon_text(board.threat.epsilon),
        "clean_acc": _percent(standing.clean.estimate.value),
        "reported": None,
    }
    autoattack = standing.by_attacker.get(Attacker("white-box", "autoattack", ""))
    if autoattack is not None:
        info["autoattack_acc"] = _percent(autoattack)
    info["external"] = _percent(standing.robust.estimate.value)
    info["footnote"] = (
        f"advbench: worst case over {formatting.plural(len(standing.by_attacker), 'attack')} on "
        f"{formatting.plural(board.threat.n, 'image')}, training seeds {', '.join(map(str, standing.seeds))}."
    )
    info["unreliable"] = bool(standing.flags)
    return json.dumps(info, indent=2, ensure_ascii=False) + "\n"


def _stochastic(board: RankedBoard, standing: Standing) -> bool:
    targets = [cell.record.target for cell in board.cells]
    return any(target["stochastic"] for target in targets if target["label"] == standing.label)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
