"""A quality sweep as a script, for launchers that want a file; the same as ``unetaccel bench quality``.

    python bench/quality.py bench/sweeps/deepcache-demo.yaml --out bench/results/quality-demo.json
    torchrun --nproc-per-node 2 bench/quality.py bench/sweeps/deepcache-demo.yaml
    accelerate launch --num_processes 2 bench/quality.py bench/sweeps/deepcache-demo.yaml    # GPUs

A row's pictures go to ``<folder>/images/<row id>/<prompt>-<seed>.png``, where any other tool can judge them too.
"""

import sys

from unetaccel.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["bench", "quality"]
    main()
