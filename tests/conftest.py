import torch

torch.set_num_threads(1)  # two threads on a small machine wait for each other
