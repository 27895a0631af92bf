"""Run commands within a time budget. A command that takes longer is killed with all processes it started."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


class Failed(Exception):
    """A command failed; the text says why, in one line."""


class Budget:
    """Time limit in seconds for a run. Sections end at shares of it, and unused time goes to the next section."""

    def __init__(self, seconds, clock=time.monotonic):
        self.seconds, self.clock = seconds, clock
        self.start, self.end = clock(), clock() + seconds

    def spent(self):
        return self.clock() - self.start

    def section(self, part):
        """Begin a section that may use the time up to this share of the whole."""
        self.end = self.start + part * self.seconds

    def left(self):
        return self.end - self.clock()


def say(line):
    """Print a line of progress on standard error. Standard output is for the table alone."""
    print(line, file=sys.stderr, flush=True)


def reason(code, text):
    """Return why a command failed, in one line: its first `error:` line, else its last line."""
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if code < 0:
        return f"ended by signal {-code} ({signal.strsignal(-code)})"
    return (errors or lines[-1:] or ["it printed nothing"])[0]


def kill(process):
    """Kill a process and all processes that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def execute(command, limit, env=None):
    """Run a command to its end. Return its standard output and the seconds it took."""
    seconds, code, out, err = attempt(command, limit, env)
    if code is None:
        raise Failed(f"killed after {limit:.0f} s")
    if code != 0:
        raise Failed(reason(code, err))
    return out, seconds


def attempt(command, limit, env=None):
    """Run a command for at most `limit` seconds.

    Return the seconds, the exit code (None if it was killed), standard output and standard error.
    """
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
            # Also after an interruption, and for processes that the command left running.
            kill(process)
            process.wait()
        seconds = time.monotonic() - start
        texts = [(file.seek(0), file.read().decode("utf-8", "replace"))[1] for file in (out, err)]
    return seconds, code, *texts


def json_lines(command, limit, env=None):
    """Return the JSON values that a command printed, one per line, and the reason if it failed."""
    _, code, out, err = attempt(command, limit, env)
    values = []
    for line in out.splitlines():
        try:
            values.append(json.loads(line))
        except ValueError:
            continue  # A line that was cut when the command was killed, or a message of a library.
    why = None if code == 0 else f"killed after {limit:.0f} s" if code is None else reason(code, err)
    return values, why


# Suffix of a storage type whose weight matrices are stored in 8 bits.
INT8 = " with int8 weights"


def storage(dtype):
    """Return the program's options for a storage type as `plan --json` names it."""
    floats = dtype.removesuffix(INT8)
    return ["--dtype", floats, "--weights-dtype", "floats" if floats == dtype else "int8"]


class Program:
    """Release binary of mobilediffusion, run on one device."""

    def __init__(self, path, device):
        self.path, self.device = Path(path).resolve(), device

    def bench(self, arguments, limit, dtype="f32", within=0.6):
        """Return what `bench --json` writes.

        The program starts nothing new after `within` of the limit, so that it is killed only if it hangs. If it failed
        but wrote results, the reason is added to them as `failed`.
        """
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
