"""Training under a budget, with torch alone: any callable that returns a Tally is trained, exactly, in pieces."""
