"""What commands tell on stderr: log lines, and mistakes of the user in a line each. Imports nothing that is slow."""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


# What bad input, missing files and an unreachable Hub raise, in our code and in the libraries'. Other exceptions are
# bugs, and shown with their traceback
MISTAKES = (ValueError, OSError, FloatingPointError)
LIBRARIES_MISTAKES = ("StrictDataclassError", "YAMLError", "SafetensorError")


class Mistakes(ValueError):
    """What is wrong with the arguments of a command, all of it at once: a line each, with the remedy."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


class StderrHandler(logging.StreamHandler):
    """Writes to what `sys.stderr` is when there is something to write: what it was earlier may be closed by then."""

    def __init__(self):
        logging.Handler.__init__(self)

    @property
    def stream(self):
        return sys.stderr


def start_logging() -> None:
    """Shows what this package tells; not the root's logger: libraries would tell of every request."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of kernels that nobody asked for
    logger = logging.getLogger("aligngpt")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, StderrHandler) for handler in logger.handlers):
        logger.addHandler(StderrHandler())


@contextmanager
def told_in_a_line(name: str, debug: bool = False) -> Iterator[None]:
    """
    Ends the process with code 2 and a line for each mistake of the user that the block raises, instead of a traceback;
    with 130 on Ctrl-C.

    Args:
        name (`str`): of the command, which begins the lines.
        debug (`bool`): show the traceback all the same.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{name}: stopped.\n")
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if debug or not (isinstance(error, MISTAKES) or _is_told_by_a_library(error)):
            raise
        if isinstance(error, Mistakes):
            # Every process of a run finds the same; one says so
            lines = error.problems if os.environ.get("LOCAL_RANK", "0") == "0" else []
        else:
            lines = [f"{_describe(error)} (--debug shows the traceback)"]
        # A progress bar may stand in the line
        start = "\n" if "tqdm" in sys.modules and getattr(sys.modules["tqdm"].tqdm, "_instances", None) else ""
        sys.stderr.write(start + "".join(f"{name}: {' '.join(line.split())}\n" for line in lines))
        sys.exit(2)


def _is_told_by_a_library(error: Exception) -> bool:
    """A library that another one misses, a value that a configuration refuses, a file that a format refuses."""
    if isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError):
        return True
    return not {kind.__name__ for kind in type(error).__mro__}.isdisjoint(LIBRARIES_MISTAKES)


def _describe(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    # A file that cannot be read says so in words of its format only
    is_ours = type(error).__module__ == "builtins" or type(error).__module__.startswith("aligngpt")
    return text if text and is_ours else f"{type(error).__name__}: {text}"
