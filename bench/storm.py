"""A storm: a long night in which one thing after another goes wrong, and the balance of it.

    python -m bench.storm [--seeds 1,2] [--visits 97] [--detectors R22_S11] [--speed 1] [--output storms/]

A fault of the library in each visit, drawn by the seed (docs/faults.md); 97 visits, 37 s apart, are an hour of the
night, which passes `speed` times as fast. Prints for each seed what the night's own report counts, from the journal,
the L1 database, the simulator's truth, and a consumer of the alert topic in a process of its own; and what did not go
as injected. The exit code is that of the worst night.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def play(seed: int, visits: int, detectors: str, speed: float, output: Path) -> int:
    """The night of a seed; its exit code."""
    command = [sys.executable, "-m", "cluster.cli", "night", "--visits", str(visits), "--detectors", detectors]
    command += ["--seed", str(seed), "--fault", f"storm:{seed}", "--speed", str(speed)]
    command += ["--metrics-port", "0", "--output", str(output)]
    with (output.parent / f"{output.name}.screen").open("wb") as screen:
        return subprocess.run(command, stdout=screen, stderr=subprocess.STDOUT, check=False).returncode


def told(report: dict[str, Any]) -> list[tuple[str, object]]:
    """What a night comes to."""
    balance, latency, saw = report["balance"], report["latency"], report["witnessed"] or {}
    states = [fault["state"] for fault in report["faults"]]
    return [
        ("faults injected / missed", f"{len(states) - states.count('missed')} / {states.count('missed')}"),
        ("visits planned / done / not heard of", " / ".join(
            str(count) for count in (balance["visits_planned"], balance["visits"], len(report["unheard"])))),
        ("raws taken / archived / caught up / missing", " / ".join(
            str(balance[name]) for name in ("raws_taken", "raws_archived", "raws_caught_up", "raws_missing"))),
        ("visit-detectors failed / redone", f"{sum(balance['failed'].values())} / {balance['redone']}"),
        ("alerts made / in the database / acknowledged", " / ".join(
            str(balance[name]) for name in ("alerts_made", "alerts_sent", "alerts_acknowledged"))),
        ("seen: alerts / messages", f"{saw.get('alerts')} / {saw.get('messages')}"),
        ("seen: missing / unknown / other bytes", " / ".join(
            str(saw.get(name)) for name in ("missing", "unknown", "differing"))),
        ("alerts matched to the truth, purity", f"{report['truth']['matched']}, {report['truth']['purity']}"),
        ("latency median / p98 / max, s", f"{latency['median_s']} / {latency['p98_s']} / {latency['max_s']}"),
        ("within 60 s", latency["within_60s"]),
        ("still owed, by pool", report["owed"]),
        ("reconciles", balance["reconciles"]),
    ]  # fmt: skip


def main() -> int:
    """Every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--visits", type=int, default=97)
    parser.add_argument("--detectors", default="R22_S11")
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--output", type=Path, default=Path("storms"))
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    worst = 0
    for seed in map(int, given.seeds.split(",")):
        folder = given.output / str(seed)
        code = play(seed, given.visits, given.detectors, given.speed, folder)
        print(f"storm:{seed}: exit code {code}")
        worst = max(worst, abs(code))
        if (folder / "report.json").exists():
            report = json.loads((folder / "report.json").read_text("utf-8"))
            for what, figure in told(report):
                print(f"    {what:48s} {figure}")
            for fault in report["faults"]:
                if fault["state"] == "missed":
                    print(f"    missed: {fault['name']}: {fault['reason']}")
            for group, reason in report["refused"].items():
                print(f"    refused: {group}: {reason}")
    return worst


if __name__ == "__main__":
    sys.exit(main())
