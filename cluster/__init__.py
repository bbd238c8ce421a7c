"""How it runs: topology, bus, hosts, services, settings, the night and the command line. Alone imports Ray."""

import logging
import os
from pathlib import Path

# Read when ray is first imported: `uv run` must not make Ray upload the folder and build an environment for workers.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# Ray otherwise nices every worker, the prompt ones too.
os.environ.setdefault("RAY_worker_niceness", "0")
# Ray otherwise takes for dead who does not answer for 7 minutes: batch work that stands still for prompt work.
os.environ.setdefault("RAY_grpc_client_keepalive_time_ms", str(24 * 3600 * 1000))
# One thread a worker: the pool's size says how many cores are used.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
# Processes that are started from here keep the memory of freed images: taking 1.3 GB anew costs 0.13 s of page faults,
# against 0.04 s kept, and a visit-detector takes several times that. glibc reads these when a process starts.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(4 << 30))
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(8 << 30))
# `ray start` asks for this user's token where there is one; who joins it must show that, before ray is imported.
if (Path.home() / ".ray" / "auth_token").exists():
    os.environ.setdefault("RAY_AUTH_MODE", "token")
# They warn that eups, and pandas to turn tables into, are not there: nobody wants them.
for _name in ("lsst.utils.packages", "lsst.daf.butler._storage_class"):
    logging.getLogger(_name).setLevel(logging.ERROR)
