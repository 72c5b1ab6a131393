"""Python's garbage collector in processes that stream.

A full pass goes through every object of the process and stops all else meanwhile: a tenth of a second and
more where large libraries are loaded, in the middle of everybody's answer. What was made until a process is
ready stays until its end, so no pass needs to look at it.

A pass over young objects comes by default after every 700 of them, which is every few tokens, and finds
nothing: messages, tasks and futures go when nobody refers to them. So passes are rarer, and what is garbage
only in a circle waits a little longer.
"""

import gc
from typing import Final

YOUNG_MAX: Final = 20_000  # objects that were made and not freed, before a pass looks at them


def freeze() -> None:
    """From now on passes are rarer and see only what is made later. For a process that has become ready."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_MAX)
