"""Run commands within a time budget. A command that takes longer is killed with all processes it started."""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, Optional

# Ending of the names of programs.
EXE = ".exe" if os.name == "nt" else ""
# Seconds for which a killed process is waited for: one that hangs in a driver may never end.
GRACE = 10


class Failed(Exception):
    """A command failed; the text says why, in one line. `err` is what it printed on standard error."""

    def __init__(self, why, err=""):
        super().__init__(why)
        self.err = err


class Done(NamedTuple):
    """A command that has ended, with what it printed. `why` says why it failed, and is None otherwise."""

    seconds: float
    out: str
    err: str
    why: Optional[str]


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


class Log:
    """What all commands printed, for a file. It is kept in memory until the file's place is known."""

    # Longest text of one stream in the file.
    MOST = 200_000

    def __init__(self):
        self.path, self.kept = None, ""

    def open(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.kept, encoding="utf-8")
        self.path, self.kept = path, ""

    def add(self, command, seconds, end, out, err):
        streams = (("standard output", out), ("standard error", err))
        text = "".join(f"--- {name}\n{self.cut(said.rstrip())}\n" for name, said in streams if said.strip())
        text = f"$ {shlex.join(command)}\n{text}--- {end or 'done'}, {seconds:.1f} s\n\n"
        if self.path is None:
            self.kept += text
        else:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)

    def cut(self, text):
        half = self.MOST // 2
        return text if len(text) <= self.MOST else f"{text[:half]}\n[...]\n{text[-half:]}"


LOG = Log()
WARNED = set()


def say(line):
    """Print a line of progress on standard error. Standard output is for the table alone."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        pass  # The terminal was closed. The record still has to be written.


def reason(code, err, limit, dead=True):
    """Return why a command failed, in one line, or None. `code` is its exit code, None if it was killed at its limit.

    That is the first `error:` line or the message of a panic. For what ended without one, it includes the last line.
    """
    if code == 0:
        return None
    lines = [line.strip() for line in err.splitlines()]
    lines = [line for line in lines if line and not line.startswith("note:")]
    last = "".join(f": {line.removeprefix('error: ')}" for line in lines[-1:])
    if code is None:
        return f"killed after {limit:.0f} s{'' if dead else ', but it did not die'}{last}"
    # Rust prints the message of a panic on the line after its place.
    panics = [after for line, after in zip(lines, lines[1:]) if " panicked at " in line]
    if code < 0:
        return f"ended by signal {-code} ({signal.strsignal(-code)}){': ' + panics[0] if panics else last}"
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or panics or lines[-1:] or ["it printed nothing"])[0]


def kill(process):
    """Kill a process and all processes that it started. Windows has no process groups: those that it started go on."""
    if not hasattr(os, "killpg"):
        return process.kill()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def execute(command, limit, env=None):
    """Run a command to its end, and pass its warnings on. Return its standard output and the seconds it took."""
    done = attempt(command, limit, env)
    for line in done.err.splitlines():
        if line.startswith("warning:") and line not in WARNED:
            # Every call of the program may warn of the same.
            WARNED.add(line)
            say(line)
    if done.why:
        raise Failed(done.why, done.err)
    return done.out, done.seconds


def attempt(command, limit, env=None):
    """Run a command for at most `limit` seconds, and log what it printed. Return it as a `Done`."""
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
        interrupted = True
        try:
            code, dead = wait(process, limit)
            interrupted = False
        finally:
            seconds = time.monotonic() - start
            texts = [(file.seek(0), file.read().decode("utf-8", "replace"))[1] for file in (out, err)]
            why = "interrupted" if interrupted else reason(code, texts[1], limit, dead)
            LOG.add(command, seconds, why, *texts)
    return Done(seconds, *texts, why)


def wait(process, limit):
    """Wait for a process, and kill it at the limit.

    Return its exit code, None if it was killed, and whether it is dead.
    """
    code, dead = None, True
    try:
        code = process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # Also after an interruption, and for processes that the command left running.
        kill(process)
        try:
            process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            dead = False
    return code, dead


def json_lines(command, limit, env=None):
    """Return the JSON objects that a command printed, one per line, and the reason if it failed."""
    done = attempt(command, limit, env)
    values = []
    for line in done.out.splitlines():
        try:
            values.append(json.loads(line))
        except ValueError:
            continue  # A line that was cut when the command was killed, or a message of a library.
    return [value for value in values if isinstance(value, dict)], done.why


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
                return json.loads(file.read_text("utf-8")) | {"failed": str(failed)}
            return json.loads(file.read_text("utf-8"))

    def plan(self, arguments, limit):
        out, _ = execute([self.path, "plan", "--json", *arguments], limit)
        return json.loads(out)
