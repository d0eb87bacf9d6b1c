"""One thread a test process: several of them share the cores, and MindSpore's idle threads would spin in their way."""

from __future__ import annotations

import os

# Before numpy and MindSpore read it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import mindspore as ms

ms.runtime.dispatch_threads_num(1)
ms.device_context.cpu.op_tuning.threads_num(1)
