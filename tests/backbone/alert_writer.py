"""A process that writes an alert file: `alert_writer folder die_at`, and is killed at that file it opens or renames."""

import sys
from pathlib import Path

from backbone.alert_archive import AlertArchive
from tests.backbone.kept_alerts import DETECTOR, SCHEMA, VISIT, ids_of, keys_of, records
from tests.backbone.last_breath import die_at

if __name__ == "__main__":
    archive = AlertArchive(Path(sys.argv[1]), SCHEMA)
    die_at(int(sys.argv[2]))
    archive.write(VISIT, DETECTOR, records(5), ids_of(5), keys_of(5))
