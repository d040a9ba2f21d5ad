"""Stopping a run from outside, with a checkpoint."""

import signal
import threading

import torch
import torch.distributed as dist
from transformers import TrainerCallback
from transformers.utils import logging


logger = logging.get_logger(__name__)

# A scheduler's notice (SIGTERM; SLURM's --signal=USR1), and Ctrl-C
SIGNALS = (signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))


class StopOnSignal(TrainerCallback):
    """
    Saves a checkpoint and stops after the step during which a signal came; a second one stops at once. The processes
    agree on the step: one that saved alone would wait for the others forever. `signal_number` tells scripts that a run
    was stopped, and is not finished.
    """

    def __init__(self):
        self.signal_number: int | None = None
        self._received: int | None = None
        self._handlers: dict[int, object] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if threading.current_thread() is threading.main_thread():  # Python gives signals to no other
            self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def _receive(self, number, frame):
        name = signal.Signals(number).name
        logger.warning(f"{name}: saving a checkpoint after this step. Once more to stop at once.")
        self._received = number
        self._restore()

    def _restore(self):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_step_end(self, args, state, control, **kwargs):
        received = self._received or 0
        if dist.is_initialized() and dist.get_world_size() > 1:
            flag = torch.tensor(received, device=args.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            received = int(flag)
        if received:
            self.signal_number = received
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        self._restore()
