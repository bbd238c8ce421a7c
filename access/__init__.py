"""How people get at it: report, live display, alert follower."""
