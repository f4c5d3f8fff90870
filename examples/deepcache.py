"""DeepCache on the shipped demo pipeline, from apply to remove: ``python examples/deepcache.py``.

Prints, up to the times:

    unetaccel: DeepCache(interval=3, cut=0)
      cut        0 (enters at up_blocks.2.resnets.2)
      plan       F..F..F..F..F..F..F.
      calls      7 full + 13 cached
      cache      32,768 bytes
      MACs       45.4% of plain; a cached evaluation is 16.0% of a full one
      time       12.94 ms full, 2.02 ms cached
    the plain U-Net is back: True
"""

import torch

import unetaccel
from unetaccel.demo.pipeline import load_pipeline

if __name__ == "__main__":
    pipe = load_pipeline()
    original = pipe.unet
    with unetaccel.apply(pipe, unetaccel.DeepCache(interval=3, cut=0)) as handle:
        generator = torch.Generator().manual_seed(0)
        pipe("a large red ring on a black background", num_inference_steps=20, guidance_scale=3.0, generator=generator)
        print(handle.summary())
    print("the plain U-Net is back:", pipe.unet is original)
