"""From measured sources to committed objects and alert packets."""
