"""A process of its own that puts datasets of detectors, and says so: `archive_writer folder 90 91 92`.

`--die-at N` kills it, as `kill -9` does, at the Nth file that it opens or renames for its last detector.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from backbone.butler import ButlerArchive
from schemas.skymap import tract_at
from tests.backbone import kept_objects as kept
from tests.backbone.last_breath import die_at


def main(folder: Path, detectors: list[int], last_breath: int | None) -> None:
    archive = ButlerArchive.open(folder)
    taken = kept.raw()
    tract = tract_at(150.0, 2.2)
    print("ready", flush=True)  # noqa: T201 - what the test waits for
    sys.stdin.readline()
    for detector in detectors:
        if last_breath and detector == detectors[-1]:
            die_at(last_breath)
        archive.put_raw(replace(taken, detector=detector))
        archive.put(kept.visit_id("visit_summary", detector), {"detector": detector})
        archive.put(kept.calibration_id(detector), kept.calibration(seed=detector))
        archive.put(kept.patch_id(tract, detector), kept.template_patch(tract, detector))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("detectors", type=int, nargs="+")
    parser.add_argument("--die-at", type=int)
    said = parser.parse_args()
    main(said.folder, said.detectors, said.die_at)
