"""Sweeps: many settings sampled with the same prompts and seeds, timed side by side and judged by the same metrics."""
