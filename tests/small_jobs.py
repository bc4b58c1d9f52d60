"""Jobs for worker processes. A worker loads this module, which imports little."""

import time

from fedexit.support.errors import FedexitError


def wait_or_fail(slow, begun, ended):
    if slow:
        begun.touch()
        time.sleep(30)
        ended.touch()
    while not begun.exists():
        time.sleep(0.01)
    raise FedexitError("a job that fails")
