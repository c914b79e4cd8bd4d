"""How the C library handles the memory of freed tensors."""

import ctypes

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Let the process reuse the memory of freed CPU tensors. Returns True if that is possible.

    torch has no caching allocator on the CPU. The GNU C library returns the memory of each freed tensor of a megabyte
    or more to the system and requests it again page by page, which takes a third of the time of eager steps of medium
    networks. After this call the process keeps the memory of freed tensors of up to one gigabyte each, so its memory
    does not shrink below the largest amount that was in use at once. The setting applies to the whole process. On
    systems without the GNU C library the function does nothing and returns False.

    >>> isinstance(keep_freed_memory(), bool)
    True
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    sizes = {_MMAP_THRESHOLD: 1 << 30, _TRIM_THRESHOLD: 0x7FFFFFFF, _TOP_PAD: 64 << 20}
    return all(mallopt(parameter, size) == 1 for parameter, size in sizes.items())
