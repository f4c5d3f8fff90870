"""All stages of the demo's training, in order, each in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch


def train_demo(out: str | Path, processes: int = 2, unet_steps: int = 4200) -> Path:
    """Train every part into ``out`` and assemble ``out/pipeline``; about 40 minutes on two cores.

    Stages whose output is already in ``out`` are skipped. Returns the pipeline's folder.
    """
    from .assemble import assemble

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", TOKENIZERS_PARALLELISM="false")
    with ProcessPoolExecutor(min(processes, 2), mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(_encoder_and_labels, out), pool.submit(_autoencoder, out)]:
            future.result()
    if not (out / "unet").exists():
        # torchrun starts the processes and accelerate joins them: its own launcher starts a single one on CPUs.
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        module = ["-m", "unetaccel.demo.train.unet", str(out), f"--steps={unet_steps}"]
        subprocess.run([*launch, *module], check=True)
    return assemble(out)


def _encoder_and_labels(out: Path) -> None:
    from .label_net import train_label_net
    from .text import train_text_encoder

    torch.set_num_threads(1)
    if not (out / "text_encoder").exists():
        train_text_encoder(out)
    if not (out / "label_net.safetensors").exists():
        train_label_net(out)


def _autoencoder(out: Path) -> None:
    from .autoencoder import train_autoencoder

    torch.set_num_threads(1)
    if not (out / "vae").exists():
        train_autoencoder(out)
