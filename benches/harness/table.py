"""Format a record as Markdown."""

from .sections import FULL


def table(heads, rows):
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def ms(us):
    return "" if us is None else f"{us / 1e3:.3g}" if us < 1e5 else f"{us / 1e3:.0f}"


def mib(count):
    return "" if count is None else f"{count / 2**20:.1f}"


def seconds(start):
    return f"{start['seconds']:.2f}" if start else ""


def markdown(record):
    machine = record["machine"]
    parts = [f"# {machine['device']}, {record['date']}", facts(record)]
    for title, text in (
        ("Networks, one evaluation", networks(record)),
        ("Beside the paper's Table 4", paper(record)),
        ("Pictures, from the prompt to pixels", pictures(record)),
        ("From the start of the process to the first picture on disk", starts(record)),
        ("Peers on the same device", peers(record)),
        *((f"Kernels at the model's shapes, {dtype}", kernels(rows)) for dtype, rows in record["kernels"].items()),
        ("The GPU after each section", states(record)),
        ("Left out", left_out(record)),
    ):
        if text:
            parts.append(f"## {title}\n\n{text}")
    return "\n\n".join(parts) + "\n"


def facts(record):
    machine, peaks = record["machine"], record["peaks"]
    said = [f"`{record['command']}`, {record['seconds']:.0f} s."]
    said += [f"{key}: {machine[key]}." for key in ("driver", "units", "matrix units", "processor", "commit", "clocks", "clock") if machine.get(key)]
    names = {"flops_per_second": "f32", "half_flops_per_second": "f16", "matrix_flops_per_second": "matrix units"}
    for dtype, peak in peaks.items():
        rates = [f"{peak[key] / 1e9:.0f} GFLOP/s ({name})" for key, name in names.items() if peak.get(key)]
        copies = number(peak["copy_bytes_per_second"], 1, 1e9)
        said.append(f"Peaks beside what ran in {dtype}: copies {copies} GB/s, multiply-adds {', '.join(rates)}.")
        if launch := peak.get("launch"):
            alone, in_a_row = number(launch["alone_seconds"], 1, 1e-6), number(launch["in_a_row_seconds"], 1, 1e-6)
            said.append(f"A dispatch of one small workgroup: {alone} us in a pass of its own, {in_a_row} us in a row.")
    return "\n".join(said)


def networks(record):
    heads = ["network", "size", "batch", "floats", "ms", "runs", "host, ms", "steps (at least)", "MiB moved (at least)",
             "weights, MiB", "activations, MiB"]
    row = lambda r: [
        f"{r['preset']} {r['network']}", r["size"], r["batch"], r["dtype"], ms(r["whole_us"]), r.get("runs", ""), ms(r["host_us"]),
        f"{r.get('steps', '')} ({r.get('fewest_steps', '')})",
        f"{mib(r.get('bytes_moved'))} ({mib(r.get('fewest_bytes_moved'))})", mib(r.get("weight_bytes")),
        mib(r.get("activation_bytes"))]
    return record["networks"] and table(heads, map(row, record["networks"]))


def paper(record):
    heads = ["network", "floats", f"{FULL}, ms", "sd15, ms", "ratio", "paper's, ms", "paper's SD 1.5, ms", "paper's ratio"]
    row = lambda r: [r["network"], r["dtype"], f"{r['ours_ms']:.2f}", f"{r['sd15_ms']:.2f}", f"{r['ratio']:.3f}",
                     r["paper_ms"], r["paper_sd15_ms"], f"{r['paper_ratio']:.3f}"]
    return record["paper"] and table(heads, map(row, record["paper"]))


def pictures(record):
    heads = ["model", "floats", "first, s", "again, s", "again: text, denoise, decode, s", "weights, MiB",
             "activations, MiB", "together, MiB", "process at its peak, MiB"]
    row = lambda r: [
        r["model"], r["dtype"], f"{r['first_seconds']:.3f}", f"{r['again_seconds']:.3f}",
        ", ".join(f"{r['again_phases'].get(phase, 0):.3f}" for phase in ("text", "denoise", "decode")),
        mib(r["weight_bytes"]), mib(r["plan_bytes"]), mib(r["weight_bytes"] + r["plan_bytes"]),
        mib(r["process_peak_bytes"])]
    note = "A pipeline holds its weights and activations from the first picture to the last, and nothing else: their sum is its peak on the device."
    return record["pictures"] and table(heads, map(row, record["pictures"])) + "\n\n" + note


def starts(record):
    heads = ["model", "floats", "nothing compiled before, s", "again, with the cache, s"]
    row = lambda r: [r["model"], r["dtype"], seconds(r["cold"]), seconds(r["warm"])]
    return record["starts"] and table(heads, map(row, record["starts"]))


def peers(record):
    heads = ["peer", "what", "peer, ms", "ours, ms", "ours / peer"]
    row = lambda r: [r["peer"], r["what"], f"{r['seconds'] * 1e3:.2f}", f"{r['ours_seconds'] * 1e3:.2f}", f"{r['ratio']:.2f}"]
    # Older records have none of these.
    repeats = [f"{r['when']} {ms(r['whole_us'])} ms" for r in record.get("repeats", [])]
    note = f"\n\n{record['repeats'][0]['what']}, again: {', '.join(repeats)}." if repeats else ""
    return record["peers"] and table(heads, map(row, record["peers"])) + note


def kernels(rows):
    heads = ["kernel", "shape", "us", "GFLOP/s", "GB/s", "% of the limit", "bound by",
             "% of an equal copy", "variant"]
    row = lambda r: [
        r["kernel"], r["shape"], number(r["median_us"], 1), number(r["flops_per_second"], 1, 1e9),
        number(r["bytes_per_second"], 2, 1e9), *limit(r),
        number(r.get("part_of_equal_copy"), 1, 0.01), r.get("variant") or ""]
    note = ("caches: more bytes per second move than in the measured copies, so the copies are no limit. Most of the bytes counted for "
            "embedding belong to its table and are not read.")
    return rows and table(heads, map(row, rows)) + (f"\n\n{note}" if any(map(cached, rows)) else "")


def number(value, digits, unit=1):
    """Format a number with `digits` digits. None gives an empty text."""
    return "" if value is None else f"{value / unit:.{digits}f}"


def cached(row):
    return row["bound"] == "caches"


def limit(row):
    """Return the percentage of the nearer peak, and the name of that peak."""
    return ("", "caches") if cached(row) else (number(row["part_of_limit"], 1, 0.01), row["bound"])


def states(record):
    heads = {"after": "after", "sm_clock": "clock", "memory_clock": "memory clock", "power": "power",
             "temperature": "temperature, °C", "clocks_held_by": "clocks held by"}
    rows = record.get("states", [])
    return rows and table(list(heads.values()), [[row.get(key, "") for key in heads] for row in rows])


def left_out(record):
    return "\n".join(f"* {item['what']}: {item['why']}" for item in record["left_out"])
