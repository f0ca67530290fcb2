"""torchrun with the exit status of what it ran: torchrun's own is 1 whatever a process ended with.

    python -m evaluate.runtime.torchrun --standalone --nproc-per-node 8 -m evaluate.detection --ckpt FILE …

Takes torchrun's arguments.
"""

import logging
import os
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from evaluate.runtime.processes import PARENT, end_with_parent


def main(argv: list[str] | None = None) -> int:
    """0, the exit status of the first process that failed, or 128 and the signal that ended it."""
    end_with_parent()
    os.environ[PARENT] = str(os.getpid())  # its processes end with it, as it does with the one that started it
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the task's own sentence stays the last
    try:
        run(parse_args(argv))
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        return status if status > 0 else 128 - status
    return 0


if __name__ == "__main__":
    sys.exit(main())
