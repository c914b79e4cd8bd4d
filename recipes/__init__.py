"""Stories that run as ``python -m recipes.NAME``."""

import os

# Fresh tensors of 2 MB and more in huge pages, where Linux gives them on request: a page fault for each 4 KB costs
# most of the time of writing large results. torch reads this once, while it is imported.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
