"""Synthetic but realistic runs: targets with a known robustness, attacks with a known strength."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from advbench.reports.cells import Cells, load
from advbench.results.record import Examples, Gallery, Record
from advbench.results.store import Store

TARGETS = {"none": 0.05, "robust-linf": 0.55, "pgd-linf": 0.8, "input-noise": 0.3}
ATTACKS = {"fgsm": 0.8, "pgd": 1.0, "deepfool": 0.9}
MATRICES = {"white-box": 1.0, "black-box": 0.35, "transfer": 0.45}


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A run to be written into a store.

    targets: robustness of each in [0, 1]. attacks: strength of each. failing: (matrix, target, attack) without numbers.
    """

    n: int = 100
    draws: int = 10
    targets: dict[str, float] = field(default_factory=lambda: dict(TARGETS))
    attacks: dict[str, float] = field(default_factory=lambda: dict(ATTACKS))
    matrices: Sequence[str] = tuple(MATRICES)
    epsilons: Sequence[float] = (0.3,)
    seeds: Sequence[int] = (0,)
    failing: Sequence[tuple[str, str, str]] = ()
    stochastic: Sequence[str] = ("input-noise",)
    device: str = "Example CPU 3000"
    dataset: str = "mnist"
    architecture: str = "gu2014/n200-200-10"
    side: int = 28

    def write(self, store: Store) -> list[str]:
        """Write all records; returns their keys."""
        return [self._write(store, record) for record in self.records()]

    def records(self) -> list[Record]:
        """A record for each cell."""
        found = []
        for seed, epsilon, matrix, target, attack in product(
            self.seeds, self.epsilons, self.matrices, self.targets, self.attacks
        ):
            sources: list[str | None] = {"white-box": [None], "black-box": ["substitute"], "transfer": list(self.targets)}[
                matrix
            ]
            found += [self._record(seed, epsilon, matrix, target, attack, source) for source in sources]
        return found

    def _record(self, seed: int, epsilon: float, matrix: str, target: str, attack: str, source: str | None) -> Record:
        failed = (matrix, target, attack) in self.failing
        minimal = attack == "deepfool" and matrix == "white-box"
        place = json.dumps([seed, epsilon, matrix, target, attack, source, self.dataset, self.n, self.architecture])
        cost = {"fgsm": 1, "pgd": 40, "deepfool": 55}.get(attack, 10) * self.n
        return Record(
            key=hashlib.sha256(place.encode()).hexdigest(),
            status="error" if failed else "ok",
            reason="ViolationError: pgd left the ball by 0.2" if failed else "",
            matrix=matrix,
            dataset={"name": self.dataset, "split": "test", "fingerprint": "3f" * 32, "n": self.n},
            target=self._target(target),
            source=self._source(source),
            attack={
                "label": attack,
                "name": attack,
                "arguments": {"steps": 40, "step_size": 0.1} if attack == "pgd" else {},
                "minimal_norm": minimal,
                "source_hash": hashlib.sha256(attack.encode()).hexdigest(),
            },
            weights_sha256=hashlib.sha256(f"{target}{seed}".encode()).hexdigest(),
            threat={"norm": "linf", "epsilon": epsilon, "box": [0.0, 1.0]},
            seed=seed,
            counts={} if failed else {"examples": self.n, "forwards": cost, "backwards": cost, "queries": 0},
            details={"substitute": {"queries": 9600, "fidelity": 0.93, "seconds": 21.5}} if matrix == "black-box" else {},
            measured={
                "seconds": cost * 4e-5,
                "peak_memory_bytes": 412_000_000,
                "device": self.device,
                "threads": 1,
                "tasks_beside": 1,
                "environment": {
                    "advbench": "0.1.0",
                    "torch": "2.14.0",
                    "python": "3.11.7",
                    "commit": "c0ffee" * 6,
                    "dirty": False,
                },
            },
        )

    def _target(self, target: str) -> dict[str, Any]:
        return {
            "label": target,
            "defense": {"name": target, "arguments": {"epsilon": 0.3} if "linf" in target else {}},
            "architecture": {"name": self.architecture, "arguments": {}},
            "stochastic": target in self.stochastic,
        }

    def _source(self, source: str | None) -> dict[str, Any] | None:
        if source is None:
            return None
        if source == "substitute":
            return {"label": "substitute gu2014/n100-100-10", "kind": "substitute"}
        return self._target(source) | {"kind": "model"}

    def _write(self, store: Store, record: Record) -> str:
        if record.status == "ok":
            examples = self.examples(record)
            store.write(record, examples, self._gallery(record))
        else:
            store.write(record)
        return record.key

    def examples(self, record: Record) -> Examples:
        """Outcomes in which every example has a hardness that all cells share, and noise of its own."""
        n, target = self.n, record.target["label"]
        common = np.random.default_rng([record.seed, 1])
        hardness, flaw = common.random(n), common.random(n)
        rng = np.random.default_rng(int(record.key[:8], 16))
        strength = self.attacks[record.attack["label"]] * MATRICES[record.matrix] * (record.threat["epsilon"] / 0.3) ** 0.5
        if record.matrix == "transfer" and record.source and record.source["label"] == target:
            strength *= 1.9
        margin = self.targets[target] + 0.35 * hardness - strength * (0.55 + 0.1 * rng.random(n))
        clean = np.clip(1.05 - 0.1 * self.targets[target] - flaw * 0.1, 0, 1) > 0.95 * flaw
        draws = self.draws if target in self.stochastic else 1
        chance = np.clip(0.5 + 4 * margin, 0, 0.97 if target in self.stochastic else 1) * clean
        clean_correct = rng.binomial(draws, 0.97 * clean) if draws > 1 else clean.astype(int)
        select, report = (rng.binomial(draws, chance) if draws > 1 else (chance > 0.5).astype(int) for _ in range(2))
        distance = np.full(n, record.threat["epsilon"])
        if record.attack["minimal_norm"]:
            distance = 0.02 + 0.5 * self.targets[target] * hardness + 0.05 * rng.random(n)
            select = report = np.zeros(n, int)
        return Examples(
            index=np.arange(n) * 3,
            label=np.arange(n) % 10,
            clean_prediction=np.where(clean, np.arange(n) % 10, (np.arange(n) + 1) % 10),
            draws=draws,
            clean_correct=clean_correct,
            select_correct=select,
            report_correct=report,
            distance_l0=np.full(n, 700.0),
            distance_l1=distance * 400,
            distance_l2=distance * 20,
            distance_linf=distance,
            rms=distance * 0.7,
            image_l2=np.full(n, 9.2),
        )

    def _gallery(self, record: Record) -> Gallery:
        """Ten blobs with noise that depends on where it was crafted."""
        axis = np.linspace(-1, 1, self.side)
        angles = np.linspace(0, np.pi, 10, endpoint=False)[:, None, None]
        line = np.cos(angles) * axis[:, None] + np.sin(angles) * axis
        clean = np.exp(-40 * line**2 - 3 * (axis[:, None] ** 2 + axis**2))[:, None].astype(np.float32)
        origin = record.source["label"] if record.source else record.target["label"]
        rng = np.random.default_rng(list(f"{record.matrix}{origin}{record.attack['label']}{record.seed}".encode()))
        noise = record.threat["epsilon"] * rng.choice((-1, 1), clean.shape)
        labels = np.arange(10)
        return Gallery(
            clean=clean,
            adversarial=np.clip(clean + noise, 0, 1).astype(np.float32),
            index=labels * 3,
            label=labels,
            prediction=rng.integers(0, 10, 10),
        )


@pytest.fixture(scope="session")
def suite() -> Suite:
    """The default run: 4 targets, 3 attacks, 3 matrices."""
    return Suite()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture(scope="session")
def default_store(tmp_path_factory: pytest.TempPathFactory, suite: Suite) -> Store:
    """The default run in a store that tests may read, not write."""
    found = Store(tmp_path_factory.mktemp("default"))
    suite.write(found)
    return found


@pytest.fixture(scope="session")
def default_cells(default_store: Store) -> Cells:
    """The cells of the default run."""
    return load(default_store)


@pytest.fixture(scope="session")
def make_suite() -> Any:
    """A smaller run: `make_suite(targets={...}, ...)`."""

    def make(**changes: Any) -> Suite:
        return replace(Suite(n=40, matrices=("white-box",), attacks={"pgd": 1.0, "fgsm": 0.8}), **changes)

    return make


FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Chromium, which keeps its console and its requests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("Chromium or its driver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()
