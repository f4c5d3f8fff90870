"""Latency: ways to run one U-Net side by side, checked against each other before any of them is timed."""
