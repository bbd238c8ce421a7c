"""Science: arrays and tables in, arrays and tables out; no I/O, no clock, no environment, no Ray."""
