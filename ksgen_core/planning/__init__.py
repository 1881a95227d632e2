"""Planning: the ordered key steps that reach a goal."""
