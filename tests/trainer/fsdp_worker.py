"""``python -m trainer`` under FSDP on a CPU: torch can, and accelerate would not.

Accelerate turns FSDP on for several GPUs only. Here it is told that the processes have some, for the moment in which it
decides; all that follows, from the wrapping of layers to the gathering of weights, is as on GPUs, over gloo.
"""

from __future__ import annotations

import sys
from typing import Any

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

begin = AcceleratorState.__init__


def with_several_gpus(self: AcceleratorState, *given: Any, **more: Any) -> None:
    shared = PartialState(cpu=True)._shared_state
    before = shared["distributed_type"]
    shared["distributed_type"] = DistributedType.MULTI_HPU
    try:
        begin(self, *given, **more)
    finally:
        shared["distributed_type"] = before


if __name__ == "__main__":
    AcceleratorState.__init__ = with_several_gpus
    from trainer.__main__ import main

    sys.exit(main())
