"""The gate's reports on names that no format may take for its own syntax; what they say is tested with the command."""

from __future__ import annotations

import json
from xml.etree import ElementTree

from advbench.reports.gate import FORMATS, conclusion
from advbench.results.boards import Attacker, BoardThreat
from advbench.results.gate.verdicts import TIME, WORST, CellChange, GateRow, Terms, Verdicts

HOSTILE = "<script>|`a*b_c`]]>&\x00\x1b"
THREAT = BoardThreat("mnist", "test", 100, "f" * 64, "linf", 8 / 255)


def verdicts():
    rows = (
        GateRow(threat=THREAT, target="calm", quantity=WORST, baseline=0.5, candidate=0.52, p_value=0.4, test="t"),
        GateRow(
            threat=THREAT,
            target=HOSTILE,
            quantity=WORST,
            baseline=0.5,
            candidate=0.4,
            p_value=1e-5,
            test="t",
            verdict="worse",
            fails=True,
            note=HOSTILE,
        ),
        GateRow(threat=THREAT, target="calm", quantity=TIME, baseline=0.01, candidate=0.02, verdict="same"),
        GateRow(threat=THREAT, target="fresh", quantity=WORST, candidate=0.3, verdict="new"),
    )
    cells = tuple(
        CellChange(threat=THREAT, target=name, attacker=Attacker("white-box", HOSTILE, ""), baseline=0.6, candidate=0.4)
        for name in (HOSTILE, "calm")
    )
    return Verdicts(terms=Terms(), rows=rows, cells=cells, caveats=(HOSTILE,))


def test_hostile_names_stay_text_in_every_format():
    found = verdicts()
    suite = ElementTree.fromstring(FORMATS["junit"](found))
    (case,) = [case for case in suite if case.find("failure") is not None]
    assert case.get("classname").endswith(HOSTILE.replace("\x00", "?").replace("\x1b", "?"))
    markdown = FORMATS["markdown"](found)
    assert "<script>" not in markdown
    assert "\\|" in markdown
    assert json.loads(FORMATS["json"](found))["rows"][1]["target"] == HOSTILE


def test_failures_come_first_and_their_cells_are_shown():
    text = FORMATS["text"](verdicts())
    lines = text.splitlines()
    assert lines[0] == "linf ≤ 8/255 on mnist"
    assert "worse, FAILS" in lines[3]
    assert "60.0% to 40.0% (-20.0)" in text
    assert sum("60.0% to 40.0%" in line for line in lines) == 1, "cells of what passes are not shown"
    assert "x 2.00" in text
    assert "10 ms" in text


def test_the_conclusion_names_what_fails_and_the_level():
    assert conclusion(verdicts()).startswith("failed: <script>")
    assert "2 numbers tested, nominal chance of any false alarm 0.01 (Holm)" in conclusion(verdicts())
    assert conclusion(Verdicts(terms=Terms())).startswith("passed: nothing is worse")
