"""How it runs: topology, bus, hosts, services, settings, the night and the command line. Alone imports Ray."""

import os

# Read when ray is first imported: `uv run` must not make Ray upload the folder and build an environment for workers.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# Ray otherwise nices every worker, the prompt ones too.
os.environ.setdefault("RAY_worker_niceness", "0")
# One thread a worker: the pool's size says how many cores are used.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
