"""Reactions: one plain class a kind, one `on_<event>` method for each event it understands."""
