"""Stacks as workers dump them: shapes of real dumps, shortened."""

from __future__ import annotations

BUNDLE = "/home/trainer/.ostrain/bundles/0f3a"
PYTHON = "/opt/mindspore/lib/python3.11"

_LOADER = f"""Thread 0x00007f2ae57fa6c0 (most recent call first):
  File "{PYTHON}/threading.py", line 327 in wait
  File "{PYTHON}/queue.py", line 180 in get
  File "{BUNDLE}/models/data/loader.py", line 61 in _work
  File "{PYTHON}/threading.py", line 982 in run
  File "{PYTHON}/threading.py", line 1045 in _bootstrap_inner
  File "{PYTHON}/threading.py", line 1002 in _bootstrap

"""
_OUTSIDE = f"""  File "{BUNDLE}/models/trainer.py", line 157 in _steps
  File "{BUNDLE}/models/trainer.py", line 69 in run
  File "{BUNDLE}/models/train.py", line 31 in train
  File "{BUNDLE}/models/task.py", line 79 in run_task
  File "{BUNDLE}/models/train.py", line 37 in main
  File "{BUNDLE}/models/train.py", line 41 in <module>
  File "<frozen runpy>", line 88 in _run_code
  File "<frozen runpy>", line 198 in _run_module_as_main
"""


def _dump(*frames: tuple[str, int, str]) -> str:
    lines = "".join(f'  File "{path}", line {line} in {function}\n' for path, line, function in frames)
    return f"{_LOADER}Current thread 0x00007f2b1c4f0740 (most recent call first):\n{lines}{_OUTSIDE}"


IN_ALL_REDUCE = _dump(
    (f"{PYTHON}/site-packages/mindspore/ops/primitive.py", 408, "__call__"),
    (f"{BUNDLE}/models/parallel/group.py", 53, "all_reduce"),
    (f"{BUNDLE}/models/step.py", 107, "run"),
)
# The same call, made from another line: another meeting point.
IN_ANOTHER_ALL_REDUCE = _dump(
    (f"{PYTHON}/site-packages/mindspore/ops/primitive.py", 408, "__call__"),
    (f"{BUNDLE}/models/parallel/group.py", 53, "all_reduce"),
    (f"{BUNDLE}/models/update.py", 201, "reduce"),
    (f"{BUNDLE}/models/step.py", 104, "run"),
)
IN_ASNUMPY = _dump(
    (f"{PYTHON}/site-packages/mindspore/common/tensor.py", 1102, "asnumpy"),
    (f"{BUNDLE}/models/step.py", 107, "run"),
)
READING_DATA = _dump(
    (f"{PYTHON}/threading.py", 327, "wait"),
    (f"{PYTHON}/queue.py", 171, "get"),
    (f"{BUNDLE}/models/data/loader.py", 74, "get"),
)
SAVING = _dump(
    (f"{BUNDLE}/models/files.py", 31, "write_atomic"),
    (f"{BUNDLE}/models/checkpoint/saver.py", 190, "begin"),
)
COMPUTING = _dump(
    (f"{PYTHON}/site-packages/mindspore/ops/primitive.py", 408, "__call__"),
    (f"{BUNDLE}/models/ops/cpu.py", 61, "linear"),
    (f"{BUNDLE}/models/stdit/stdit3.py", 88, "construct"),
)
SENDING_TO_A_CHILD = _dump(
    (f"{PYTHON}/multiprocessing/connection.py", 384, "send"),
    (f"{BUNDLE}/models/trainer.py", 150, "_steps"),
)
NATIVE_SEND = _dump(
    (f"{PYTHON}/site-packages/mindspore/communication/comm_func.py", 900, "send"),
    (f"{BUNDLE}/models/step.py", 107, "run"),
)
