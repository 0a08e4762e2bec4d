"""What is to be known of a device, measured and written as one JSON and one Markdown record: see `run.sh` beside it.

Each part (`tests.cuda.parts`) has a process of its own, which is ended when its share of the time is over: what it has
measured until then stands in the record, with the reason why there is no more. No part needs another one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from advbench.clocks import device_name, environment, resolve_devices, single_thread

Found = dict[str, object]
LEAST = 5.0
"""Seconds: a part that would have fewer is left out."""


def measure(parts: dict[str, float], device: str, out: Path, seconds: float, *, rehearsed: bool = False) -> Found:
    """All parts in order, each within its share of `seconds` and what is left of them; the record is written after each."""
    start, place = time.monotonic(), resolve_devices(device)[0]
    found: Found = {
        "device": device_name(place),
        "kind": place.type,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "clocks": clocks(),
        "environment": environment(),
        "torch threads": 1,
        "rehearsed": rehearsed,
    }
    for name, share in parts.items():
        limit = min(share * seconds, seconds - (time.monotonic() - start))
        begun = time.monotonic()
        found[name] = measured(name, device, limit, rehearsed=rehearsed) if limit >= LEAST else {"left out": "no time left"}
        found[name] |= {"seconds": time.monotonic() - begun}  # type: ignore[operator]
        write(found, out)
        print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return found


def measured(name: str, device: str, limit: float, *, rehearsed: bool) -> Found:
    """The rows of one part, from a process of its own; with what went wrong, or after how long it was ended."""
    with tempfile.TemporaryDirectory() as folder:
        rows, errors = Path(folder, "rows"), Path(folder, "errors")
        command = [sys.executable, "-m", __spec__.name, "--part", name, "--device", device, "--out", str(rows)]
        with errors.open("w") as said:
            child = subprocess.Popen(
                [*command, *(["--rehearsed"] if rehearsed else [])], stdout=said, stderr=said, start_new_session=True
            )
            try:
                code = child.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
        lines = rows.read_text().splitlines() if rows.exists() else []
        found: Found = {"rows": [json.loads(line) for line in lines]}
        if code is None:
            found["cut off"] = f"after {limit:.0f} s"
        elif code:
            found["error"] = (errors.read_text().strip() or f"exit {code}").splitlines()[-1]
    return found


def part(name: str, device: str, out: Path, rehearsed: bool) -> None:
    """Measure one part here, a line of JSON for each row as it comes."""
    from tests.cuda.parts import PARTS

    with single_thread(), out.open("w") as lines:
        for row in PARTS[name][0](resolve_devices(device)[0], rehearsed):
            print(json.dumps(row, default=str), file=lines, flush=True)


def clocks() -> str:
    """What nvidia-smi says of name, driver, clocks and memory; empty without it."""
    asked = "--query-gpu=name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,memory.total,power.limit"
    try:
        done = subprocess.run(["nvidia-smi", asked, "--format=csv"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def write(found: Found, out: Path) -> None:
    """The record as JSON, and as tables."""
    (out / "record.json").write_text(json.dumps(found, indent=1, default=str) + "\n")
    lines = [f"# {found['device']}", ""]
    for name, value in found.items():
        if not isinstance(value, dict) or name == "environment":
            lines += [f"- {name}: {json.dumps(value, default=str)}"]
            continue
        rows = value.get("rows", [])
        lines += ["", f"## {name} ({value.get('seconds', 0):.0f} s)", ""]
        lines += [tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4g")] if rows else []
        lines += [f"{why}: {value[why]}" for why in ("error", "cut off", "left out") if value.get(why)]
    (out / "record.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """The record, or one part of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("advbench-out/device"))
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--rehearsed", action="store_true", help="with a few small cases of each part")
    parser.add_argument("--only", default="", help="parts, separated by commas")
    parser.add_argument("--part", default="")
    given = parser.parse_args()
    if given.part:
        part(given.part, given.device, given.out, given.rehearsed)
        return
    from tests.cuda.parts import PARTS

    given.out.mkdir(parents=True, exist_ok=True)
    chosen = given.only.split(",") if given.only else list(PARTS)
    shares = {name: PARTS[name][1] for name in chosen}
    measure(shares, given.device, given.out, given.seconds, rehearsed=given.rehearsed)


if __name__ == "__main__":
    main()
