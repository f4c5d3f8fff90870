"""Trains the demo from nothing on two CPU cores: text encoder, label network, autoencoder, U-Net.

Each stage writes its own folder and is skipped when that folder is there, so a run that was
stopped goes on where it was.
"""

from .run import train_demo

__all__ = ["train_demo"]
