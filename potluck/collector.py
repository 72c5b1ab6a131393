"""Python's garbage collector in processes that stream.

A full pass goes through every object of the process and stops all else meanwhile: a tenth of a second and
more where large libraries are loaded, in the middle of everybody's answer. What was made until a process is
ready stays until its end, so no pass needs to look at it.
"""

import gc


def freeze() -> None:
    """From now on full passes see only what is made later. For a process that has just become ready."""
    gc.collect()
    gc.freeze()
