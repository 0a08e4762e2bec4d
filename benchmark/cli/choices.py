"""What the options of the command line choose from."""

from __future__ import annotations

from enum import StrEnum


class OutputsChoice(StrEnum):
    """What a network of the user's can return."""

    logits = "logits"
    probabilities = "probabilities"
    log_probabilities = "log-probabilities"


class Scale(StrEnum):
    """How large a reproduction is."""

    smoke = "smoke"
    small = "small"
    medium = "medium"
    full = "full"


class ReportFormat(StrEnum):
    """What a report can be in place of its usual files."""

    svg = "svg"
    png = "png"
    pdf = "pdf"
    csv = "csv"
    robustbench = "robustbench"
    latex = "latex"


class GateFormat(StrEnum):
    """What the gate's verdicts can be printed as."""

    text = "text"
    markdown = "markdown"
    json = "json"
    junit = "junit"


class TableFormat(StrEnum):
    """What the table of conformance, or a history, can be printed as."""

    text = "text"
    markdown = "markdown"
    json = "json"


class BenchName(StrEnum):
    """What can be measured."""

    jacobian = "jacobian"
    covariance = "covariance"
    training = "training"
    purifiers = "purifiers"
    engine = "engine"
    waits = "waits"
