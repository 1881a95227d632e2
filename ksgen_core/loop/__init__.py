"""The step loop: what each step gives to the user's own graph, the copies of it, and the names of their results."""
