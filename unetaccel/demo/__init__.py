"""The demo: a small text-to-image pipeline trained from nothing on procedural captioned shapes.

``scenes`` draws the data, ``labels`` reads pictures back, ``train`` makes the weights and
``pipeline`` loads what ships. See ``MODEL_CARD.md`` beside this file for the figures.
"""
