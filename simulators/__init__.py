"""The outside world: sky, camera, observatory control. Shares only `schemas` with the system it tests."""
