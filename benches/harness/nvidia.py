"""What nvidia-smi says of a GPU: clocks, power, and what holds the clocks down."""

from .jobs import Failed, execute

FIELDS = {"sm_clock": "clocks.sm", "memory_clock": "clocks.mem", "power": "power.draw",
          "temperature": "temperature.gpu"}
# Names of the same field in newer and in older drivers.
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
# Bits of this field.
BITS = ("idle", "set by the user", "limit of power", "slowdown by the hardware", "synchronised boost",
        "limit of temperature", "temperature, by the hardware", "power brake", "display")


def query(fields):
    """Return the values of some fields, a list for each NVIDIA GPU, or no lists if nvidia-smi does not answer."""
    try:
        out, _ = execute(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"], 10)
    except Failed:
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in out.splitlines()]
    return [row for row in rows if len(row) == len(fields)]


def clocks():
    """Return the clocks of all NVIDIA GPUs as text, or None without one."""
    rows = query(["name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem"])
    return "\n".join(map(", ".join, rows)) or None


def states(device, after):
    """Return the state of the GPUs of this name, one in most machines, after a section."""
    rows = next(filter(None, (query(["name", *FIELDS.values(), reasons]) for reasons in REASONS)), [])
    return [{"after": after, **dict(zip(FIELDS, row[1:])), "clocks_held_by": named(row[-1])}
            for row in rows if row[0] in device]


def named(bits):
    """Return the names of the reasons in a bit mask: `0x0000000000000005` is `idle, limit of power`."""
    try:
        mask = int(bits, 16)
    except ValueError:
        return bits
    return ", ".join(name for i, name in enumerate(BITS) if mask >> i & 1) or ("nothing" if mask == 0 else bits)
