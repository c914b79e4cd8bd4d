"""Memory that the C library keeps."""

import ctypes

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Let the process keep the memory of freed CPU tensors for the next ones. True where that is possible.

    torch has no caching allocator on the CPU. The GNU C library gives each freed tensor of a megabyte or more back to
    the system and takes it again page by page, which costs eager steps of medium networks a third of their time. After
    this call they stay with the process, whose memory then does not shrink again: one megabyte to one gigabyte each,
    as much as was in use at once. It holds for the whole process, and does nothing on other systems (False).

    >>> isinstance(keep_freed_memory(), bool)
    True
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    sizes = {_MMAP_THRESHOLD: 1 << 30, _TRIM_THRESHOLD: 0x7FFFFFFF, _TOP_PAD: 64 << 20}
    return all(mallopt(parameter, size) == 1 for parameter, size in sizes.items())
