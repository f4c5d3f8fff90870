"""Tuning, in parts: budgets, candidates with predicted errors, trials on held-out prompts, the search, and what it found."""
