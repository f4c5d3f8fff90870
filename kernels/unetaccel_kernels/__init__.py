"""Numerical operations of unetaccel. ``reference`` specifies each of them in plain PyTorch; importing this loads no Triton."""
