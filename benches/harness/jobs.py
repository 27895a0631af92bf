"""Running commands within a budget of time: what takes longer is killed with all that it started, and said."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


class Failed(Exception):
    """A command did not give what it was run for; the text says why, in one line."""


class Budget:
    """Seconds for everything. Sections end at parts of it; what one leaves over goes to the next."""

    def __init__(self, seconds, clock=time.monotonic):
        self.seconds, self.clock = seconds, clock
        self.start, self.end = clock(), clock() + seconds

    def spent(self):
        return self.clock() - self.start

    def section(self, part):
        """The time up to this part of the whole may be used from now on."""
        self.end = self.start + part * self.seconds

    def left(self):
        return self.end - self.clock()


def say(line):
    """Progress goes to standard error: the table is all there is on standard output."""
    print(line, file=sys.stderr, flush=True)


def reason(code, text):
    """Why a command failed, in one line: what it calls an error, else the last it said."""
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if code < 0:
        return f"ended by signal {-code} ({signal.strsignal(-code)})"
    return (errors or lines[-1:] or ["it said nothing"])[0]


def kill(process):
    """Ends a process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def execute(command, limit, env=None):
    """Runs a command to its end: its standard output, and the seconds it took."""
    seconds, code, out, err = attempt(command, limit, env)
    if code is None:
        raise Failed(f"killed after {limit:.0f} s")
    if code != 0:
        raise Failed(reason(code, err))
    return out, seconds


def attempt(command, limit, env=None):
    """Runs a command: seconds, exit code (none if it was killed), standard output and error, as far as they came."""
    if limit < 1:
        raise Failed("no time left")
    command = [str(word) for word in command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.monotonic()
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, start_new_session=True)
        except OSError as error:
            raise Failed(f"cannot run {command[0]}: {error.strerror}") from None
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # Also after an interruption, and whatever a command that ended has left running.
            kill(process)
            process.wait()
        seconds = time.monotonic() - start
        texts = [(file.seek(0), file.read().decode("utf-8", "replace"))[1] for file in (out, err)]
    return seconds, code, *texts


def json_lines(command, limit, env=None):
    """The JSON values a command printed, a line each, and why there are no more of them, if it did not end well."""
    _, code, out, err = attempt(command, limit, env)
    values = []
    for line in out.splitlines():
        try:
            values.append(json.loads(line))
        except ValueError:
            continue  # A line that was cut when it was killed, or a library's chatter.
    why = None if code == 0 else f"killed after {limit:.0f} s" if code is None else reason(code, err)
    return values, why


# Behind a storage type of floats: matrices of weights in 8 bits.
INT8 = " with int8 weights"


def storage(dtype):
    """The program's options for a storage type, as `plan --json` names it."""
    floats = dtype.removesuffix(INT8)
    return ["--dtype", floats, "--weights-dtype", "floats" if floats == dtype else "int8"]


class Program:
    """The release binary on one device."""

    def __init__(self, path, device):
        self.path, self.device = Path(path).resolve(), device

    def bench(self, arguments, limit, dtype="f32", within=0.6):
        """What `bench --json` writes. It begins nothing new after a part of the limit, so that it is killed only if it hangs.
        Where something was wrong, what was measured all the same has the reason at `failed`."""
        if limit < 1:
            raise Failed("no time left")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "bench.json"
            command = [self.path, "bench", *arguments, "--device", self.device, *storage(dtype), "--json", file]
            try:
                execute([*command, "--within", f"{within * limit:.1f}"], limit)
            except Failed as failed:
                if not file.is_file():
                    raise
                return json.loads(file.read_text()) | {"failed": str(failed)}
            return json.loads(file.read_text())

    def plan(self, arguments, limit):
        out, _ = execute([self.path, "plan", "--json", *arguments], limit)
        return json.loads(out)
