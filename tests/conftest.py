import torch

torch.set_num_threads(1)  # two threads on a small machine wait for each other
collect_ignore = ["make_jax_table.py"]  # a script that needs JAX
