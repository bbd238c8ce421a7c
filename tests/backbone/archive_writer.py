"""A process of its own that puts datasets of detectors, and says so: `archive_writer folder 90 91 92`."""

import sys
from dataclasses import replace
from pathlib import Path

from backbone.butler import ButlerArchive
from schemas.skymap import tract_at
from tests.backbone import kept_objects as kept


def main(folder: Path, detectors: list[int]) -> None:
    archive = ButlerArchive.open(folder)
    taken = kept.raw()
    tract = tract_at(150.0, 2.2)
    print("ready", flush=True)  # noqa: T201 - what the test waits for
    sys.stdin.readline()
    for detector in detectors:
        print("putting", detector, flush=True)  # noqa: T201 - what the test waits for
        archive.put_raw(replace(taken, detector=detector))
        archive.put(kept.visit_id("visit_summary", detector), {"detector": detector})
        archive.put(kept.calibration_id(detector), kept.calibration(seed=detector))
        archive.put(kept.patch_id(tract, detector), kept.template_patch(tract, detector))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(number) for number in sys.argv[2:]])
