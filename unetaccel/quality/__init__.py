"""How good the images of an accelerated run are: distances to real ones, likeness to the plain run's, fit to the prompts.

Thin over torchmetrics (``pip install "unetaccel[metrics]"``), which is imported when a metric is built, not before.
``metrics.build_metrics`` makes them by name; the modules beside it hold the functions.
"""
