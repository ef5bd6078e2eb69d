"""The command line, run in this process as a person in a terminal meets it."""

import contextlib
import io
import json
from typing import NamedTuple

import jax
import pytest

from holdfast.cli import main


@contextlib.contextmanager
def terminal():
    """A wide terminal, and no cache but the suite's own; gives the patch for more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOLDFAST_CACHE", "")
        patch.setenv("COLUMNS", "200")
        yield patch


class Answer(NamedTuple):
    """Exit code and what was printed; the errors without line breaks."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """The one object on stdout."""
        (line,) = self.out.splitlines()
        return json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def command(*arguments) -> Answer:
    """One command, in the precision that the command line has by default."""
    out, err = io.StringIO(), io.StringIO()
    redirected = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with redirected[0], redirected[1], jax.enable_x64(False), pytest.raises(SystemExit) as stop:
        main([str(each) for each in arguments])
    assert "Traceback" not in err.getvalue()
    return Answer(stop.value.code or 0, out.getvalue(), " ".join(err.getvalue().split()))
