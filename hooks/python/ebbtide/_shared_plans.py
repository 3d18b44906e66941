"""One plan for the processes of a group: rank 0's, which the others take over when they get to it.

It goes by the group's key-value store, and by no collective: a rank that skips a pass, or has other budgets, waits for nobody and nobody for it. Nothing but speed depends
on when a plan is taken over, since a region that ran a collective is never run again by plan.
"""

import logging
import os
import threading

import torch.distributed

_lock = threading.Lock()
_numbers = {}  # group's name -> how many stores of this process share plans in it


def _board(group):
    """The key-value store of a group, by a connection of its own where there is one to be had: in the other somebody may be waiting for a key."""
    board = group.get_group_store()
    try:
        return board.clone()
    except (AttributeError, RuntimeError):  # stores of some kinds cannot be cloned
        return board


class SharedPlans:
    """What one store publishes or takes over.

    Args:
        store: that of the C++ module.
        group: a process group; stores in it are matched by the order in which each process made them.
    """

    def __init__(self, store, group):
        with _lock:
            number = _numbers[group.group_name] = _numbers.get(group.group_name, -1) + 1
        self._store = store
        self._key = f"ebbtide/plans/{number}"
        self._count = f"ebbtide/plans/{number}/count"
        self._leads = torch.distributed.get_rank(group) == 0
        self._board = _board(group)
        self._known = 0  # of rank 0's: how many plans it had made; of another's: how many publications it has seen
        self._exchanging = threading.Lock()
        self._process = os.getpid()  # a forked child shares the connection, and must not use it

    def exchange(self):
        """Publishes what is new, or takes it over. Called where a scope begins, on a caller's thread: at most one short request, and waits for no other process."""
        if self._board is None or os.getpid() != self._process or not self._exchanging.acquire(blocking=False):
            return
        try:
            self._publish() if self._leads else self._take_over()
        except Exception as error:  # the process that holds the keys is gone, or they are of another version
            self._board = None
            logging.getLogger("ebbtide").warning("plans are no longer shared with the process group, and each process goes by its own: %s", error)
        finally:
            self._exchanging.release()

    def _publish(self):
        plans = self._store.plans_made()
        if plans == self._known:
            return
        text = self._store.plans_text()
        if text:
            self._board.set(self._key, text)
            self._board.add(self._count, 1)
        self._known = plans

    def _take_over(self):
        count = self._board.add(self._count, 0)
        if count == self._known:
            return
        self._store.follow(self._board.get(self._key).decode())
        self._known = count
