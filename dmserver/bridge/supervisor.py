"""The supervisor: starts a program under the filter and answers the system calls it is notified of.

Rules of this room:

1. A handler returns a result (0 and up), -errno, `CONTINUE` (the kernel does it), or `ANSWERED` (it was, or will be,
   answered elsewhere). OSError becomes its errno.
2. One thread, one loop. A call that waits is parked: the loop goes on, other threads of the caller too.
3. Nothing is written into a caller's memory unless its call is still waiting.
4. A parked call whose caller has died or must handle a signal is cancelled. Where the kernel has WAIT_KILLABLE_RECV
   (5.19) signals other than fatal ones leave a received call alone, so that a command is never carried out twice;
   then a parked call is ended here, with ERESTARTSYS as a driver would.
5. A test double, not a sandbox: what the filter lets through, and what CONTINUE lets through, the caller may do.
"""

from __future__ import annotations

import errno
import select
from collections.abc import Callable
from enum import Enum, auto

from dmserver.control.session import Cancel
from dmserver.loop import Loop

from .caller import Caller, Stale
from .seccomp import Listener

__all__ = ["ANSWERED", "CONTINUE", "Call", "Handler", "Outcome", "Supervisor"]

#: How many callers' memories are kept open.
CALLERS = 128
#: Seconds between two looks at parked calls.
PARKED_CHECK = 0.02
ERESTARTSYS = 512


class Outcome(Enum):
    CONTINUE = auto()
    ANSWERED = auto()


CONTINUE, ANSWERED = Outcome.CONTINUE, Outcome.ANSWERED


class Call:
    """One system call that waits for its answer."""

    __slots__ = ("args", "caller", "id", "name", "supervisor")

    def __init__(self, supervisor: Supervisor, name: str, id: int, caller: Caller, args: tuple[int, ...]) -> None:
        self.supervisor = supervisor
        self.name = name
        self.id = id
        self.caller = caller
        self.args = args

    def fd(self, index: int) -> int:
        """An argument that is a descriptor or AT_FDCWD."""
        value = self.args[index] & 0xFFFFFFFF
        return value - (1 << 32) if value >> 31 else value

    def string(self, index: int) -> bytes:
        """An argument that points to a string. Raises Fault."""
        return self.caller.read_string(self.args[index])

    def write(self, address: int, data: bytes) -> None:
        """Write into the caller's memory if it still waits. Raises Fault."""
        if self.supervisor.listener.is_valid(self.id):
            self.caller.write(address, data)

    def hand_over(self, fd: int, *, cloexec: bool) -> int | None:
        """Answer with a duplicate of our `fd`; its number there, None when the caller is gone."""
        return self.supervisor.listener.hand_over(self.id, fd, cloexec=cloexec)

    def park(self, cancel: Cancel) -> None:
        """The call waits; `cancel` ends what it waits for."""
        self.supervisor.park(self, cancel)

    def finish(self, result: int) -> None:
        """Answer a call that was ANSWERED or parked."""
        self.supervisor.finish(self, result)


Handler = Callable[[Call], int | Outcome]


class _Parked:
    __slots__ = ("call", "cancel", "interrupted")

    def __init__(self, call: Call, cancel: Cancel) -> None:
        self.call = call
        self.cancel = cancel
        self.interrupted = False


class Supervisor:
    """`handlers` by system call number: (name, handler). `ended` is told when no process is left, or at `close`."""

    def __init__(
        self,
        loop: Loop,
        handlers: dict[int, tuple[str, Handler]],
        listener: Listener,
        ended: Callable[[Supervisor], None],
    ) -> None:
        self.loop = loop
        self._ended = ended
        self.handlers = handlers
        self.listener = listener
        self._callers: dict[int, Caller] = {}
        self._parked: dict[int, _Parked] = {}
        self._watching = False
        loop.add(listener.fd, select.EPOLLIN, self._ready)

    def close(self) -> None:
        for parked in tuple(self._parked.values()):
            parked.cancel()
        self.loop.remove(self.listener.fd)
        for caller in self._callers.values():
            caller.close()
        self._callers.clear()
        self.listener.close()
        self._ended(self)

    def forget(self, tid: int) -> None:
        """The thread gets another memory: what is known of it is void."""
        if caller := self._callers.pop(tid, None):
            caller.close()

    def park(self, call: Call, cancel: Cancel) -> None:
        self._parked[call.id] = _Parked(call, cancel)
        if not self._watching:
            self._watching = True
            self.loop.call_later(PARKED_CHECK, self._check_parked)

    def finish(self, call: Call, result: int) -> None:
        parked = self._parked.pop(call.id, None) if self._parked else None
        if parked and parked.interrupted and result == -errno.EINTR:
            result = -ERESTARTSYS
        self.listener.answer(call.id, result)

    def _ready(self, events: int) -> None:
        if not events & select.EPOLLIN:  # the last process under the filter is gone
            self.close()
            return
        received = self.listener.receive()
        if received is None:
            return
        id, tid, nr = received[:3]
        name, handler = self.handlers[nr]
        try:
            try:
                outcome = handler(Call(self, name, id, self._callers.get(tid) or self._caller(tid, id), received[3:]))
            except Stale:  # execve(2) from another thread than the first, or a number used again
                self.forget(tid)
                outcome = handler(Call(self, name, id, self._caller(tid, id), received[3:]))
        except OSError as error:
            outcome = -(error.errno or errno.EIO)
        except Exception:  # a caller must not hang on a mistake of ours
            from traceback import print_exc

            print_exc()
            outcome = -errno.EIO
        if outcome is ANSWERED:
            return
        if outcome is CONTINUE:
            self.listener.let_through(id)
        else:
            assert isinstance(outcome, int)
            self.listener.answer(id, outcome)

    def _caller(self, tid: int, call: int) -> Caller:
        caller = Caller(tid)
        if not self.listener.is_valid(call):  # then the number may be another's by now
            caller.close()
            raise OSError(errno.ESRCH, "the caller is gone")
        if len(self._callers) >= CALLERS:
            self.forget(next(iter(self._callers)))
        self._callers[tid] = caller
        return caller

    def _check_parked(self) -> None:
        for id, parked in tuple(self._parked.items()):
            if not self.listener.is_valid(id):
                parked.cancel()
                self._parked.pop(id, None)
            elif parked.call.caller.has_signal():
                parked.interrupted = True
                parked.cancel()
        self._watching = bool(self._parked)
        if self._watching:
            self.loop.call_later(PARKED_CHECK, self._check_parked)
