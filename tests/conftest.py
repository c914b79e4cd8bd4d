import torch

torch.set_num_threads(1)  # two threads on a small machine wait for each other
# imported tables of torch call this, after which benchmarks and Opacus cannot set flags any more
torch.backends.disable_global_flags = lambda: None
collect_ignore = ["make_jax_table.py"]  # a script that needs JAX
