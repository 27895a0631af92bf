"""Measurements of this project: kernels, networks, pictures, process starts. Each job is one call of the program."""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from . import nvidia
from .jobs import INT8, Failed, execute, say, storage

FULL = "mobilediffusion"
# Table 4 of the paper, in milliseconds on a phone: MobileDiffusion's network, then Stable Diffusion 1.5's.
PAPER = {"unet": (142, 357), "decoder": (92, 285)}
# What the program says if a network or a picture is wrong. Other failures, such as too little memory, are no errors of it.
WRONG = ("computes a wrong result", "gives a different result", "gave two different pictures", "or the device are at fault")


class Section:
    """Collector of the record's rows, of what was left out with the reasons, and of measurements that found errors.

    `save` writes the record as far as it goes.
    """

    def __init__(self, program, budget, record, save=lambda: None):
        self.program, self.budget, self.record, self.save = program, budget, record, save
        self.failed = []

    def attempt(self, what, run, keep=lambda measured: None):
        """Run a job, `run(seconds left)`, add its result to the record with `keep`, and save the record.

        Return the result. If the job fails, note the reason and return None.
        """
        def job():
            measured = run(self.budget.left())
            if isinstance(measured, dict) and "failed" in measured:
                self.leave_out(f"part of {what}", measured["failed"])
                self.failed.append(f"{what}: {measured['failed']}")
            keep(measured)
            return measured

        say(f"{self.budget.spent():5.0f} s  {what}")
        result = self.guard(what, job)
        self.save()
        return result

    def guard(self, what, run):
        """Return the result of `run()`. If it fails, note the reason and return None."""
        try:
            return run()
        except Failed as failed:
            why, wrong = str(failed), any(words in str(failed) for words in WRONG)
        except Exception as error:  # noqa: BLE001 - an unexpected answer to one job must not end the others.
            why, wrong = f"{type(error).__name__}: {error}", True
        self.leave_out(what, why)
        if wrong:
            self.failed.append(f"{what}: {why}")
        return None

    def leave_out(self, what, why):
        say(f"         left out: {what}: {why}")
        self.record["left_out"].append({"what": what, "why": why})


def machine(section, dtypes):
    """Record device, driver, commit and the peaks of every storage type. A failure here ends the run."""
    record = section.record
    for dtype in dtypes:
        measured = first_contact(section, dtype)
        record["peaks"][dtype] = measured["peaks"]
        record["machine"] = record["machine"] or {k: v for k, v in measured["machine"].items() if k != "storage"}
    device = record["machine"]["device"]
    kind = re.search(r"\(([^(),]+), (?:vulkan|metal|dx12)\)$", device)
    record["machine"]["kind"] = kind.group(1) if kind else "cpu"
    try:
        found = processor(Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    if record["machine"]["kind"] in ("cpu", "software") and found:
        record["machine"]["processor"] = found
    record["machine"]["clocks"] = nvidia.clocks() or "unknown"


def first_contact(section, dtype):
    """Measure the peaks, with a second try: a driver that starts or compiles for the first time may be slow or fail."""
    limit = max(60, 0.3 * section.budget.seconds)
    run = lambda: section.program.bench(["add"], limit, dtype, within=0)
    try:
        return run()
    except Failed as failed:
        say(f"{failed.err.rstrip()}\nfailed, trying once more: {failed}")
        return run()


def refuse_fallback(machine, asked):
    """Fail if the CPU or a software driver was chosen, and not asked for by name, though there is an NVIDIA GPU."""
    if asked in ("auto", "gpu") and machine["kind"] in ("cpu", "software") and machine["clocks"] != "unknown":
        raise Failed(f"--device {asked} took {machine['device']}, but nvidia-smi finds {machine['clocks'].split(',')[0]}: "
                     "its Vulkan driver or the Vulkan loader may be missing, see `mobilediffusion devices`. "
                     "--device cpu, or an adapter's index or name, measures another device all the same")


def processor(info):
    """Return family, model and widest vectors of an x86 processor from the text of /proc/cpuinfo, or None.

    Virtual machines often give different processors the same name.
    """
    said = dict(re.findall(r"^([a-z ]+?)\s*: (.*)$", info.partition("\n\n")[0], re.MULTILINE))
    if not {"cpu family", "model", "flags"} <= said.keys():
        return None
    widest = next((name for name in ("avx512f", "avx2", "sse2") if name in said["flags"].split()), "no vectors")
    return f"family {said['cpu family']}, model {said['model']}, {widest}"


def kernels(section, dtypes, names):
    """Measure every kernel at the model's shapes."""
    for i, dtype in enumerate(dtypes):
        arguments = [*names, *(["--quick"] if section.record["quick"] else [])]
        # One shape takes a small part of the time, so a small reserve is enough for the last one begun.
        part = lambda left: section.program.bench(arguments, left / (len(dtypes) - i), dtype, within=0.85)
        section.attempt(f"kernels, {dtype}", part, lambda measured: keep_kernels(section, dtype, measured))


def keep_kernels(section, dtype, measured):
    # The shares of the limit refer to the peaks of the same call.
    section.record["kernels"][dtype], section.record["peaks"][dtype] = measured["shapes"], measured["peaks"]
    whys = {"no_room": "no room on the device", "too_long": "too much work for a quick or a software device",
            "too_late": "no time left", "lost": "the device was lost before"}
    for reason, text in whys.items():
        count = measured["left_out"].get(reason, 0)
        if count:
            section.leave_out(f"{count} shapes of kernels, {dtype}", text)


def network_jobs(kind, dtypes, quick):
    """Return the jobs as (preset, network, size, batch, dtype), the most important first."""
    if quick:
        return [(None, "unet", 64, 1, dtypes[0])]
    half_first = list(reversed(dtypes))
    if kind == "software":
        sizes = [(FULL, "unet", 256, 1), (FULL, "unet", 64, 2), (FULL, "decoder", 64, 1), (FULL, "text", 64, 1)]
        return [*((*job, dtypes[0]) for job in sizes), (*sizes[-1], dtypes[0] + INT8)]
    jobs = [(FULL, "unet", 512, 1), (FULL, "decoder", 512, 1), (FULL, "text", 512, 1), ("sd15", "unet", 512, 1),
            (FULL, "unet", 512, 2), (FULL, "unet", 256, 1), (FULL, "unet", 256, 2)]
    # The full VAE's decoders take longest to check.
    last = [("sd15", "vae-decoder", 512, 1), (FULL, "vae-decoder", 512, 1)]
    in_bytes = [(*job, half_first[0] + INT8) for job in (jobs[0], jobs[2])]
    wider = [(*job, dtype) for dtype in half_first[1:] for job in jobs[:3]]
    return [*((*job, half_first[0]) for job in jobs), *in_bytes, *wider, *((*job, half_first[0]) for job in last)]


def share(jobs):
    """Return the limits of the next of `jobs` jobs.

    The first is the share of the time left after which the job is killed; it is large enough for a slow network. The
    second is the share of that limit within which the job starts new runs; it leaves the other jobs equal shares.
    """
    limit = 1 if jobs == 1 else 0.85
    return limit, min(0.6, 1 / jobs / limit)


def least(record, job):
    """Estimate the least seconds that a job takes, four evaluations, from a row of the same network scaled to its size.

    Return 0 if there is no such row.
    """
    preset, network, size, batch, dtype = job
    like = [row for row in record["networks"] if row["network"] == network and row["dtype"] == dtype
            and (row["preset"] == preset or network == "vae-decoder")]
    return max((4e-6 * row["whole_us"] * batch / row["batch"] * (size / row["size"]) ** 2 for row in like), default=0)


def networks(section, jobs):
    """Time one evaluation of each network. The program first compares the plan's result with the CPU's."""
    done = {(row["preset"], row["network"], row["size"], row["batch"], row["dtype"]) for row in section.record["networks"]}
    jobs = [job for job in jobs if job not in done]
    for i, job in enumerate(jobs):
        preset, network, size, batch, dtype = job
        what = f"{preset or 'the bundled model'}, {network} at {size}, batch {batch}, {dtype}"
        limit, within = share(len(jobs) - i)

        def part(left):
            if least(section.record, job) > limit * left:
                raise Failed("no time left")
            arguments = ["--plan", network, *of_job(preset, size, batch)]
            return section.program.bench(arguments, limit * left, dtype, within)

        def keep(measured):
            plan = measured["plan"]
            timed_row(section, preset, network, size, batch, dtype, plan["whole_us"], sum_us=plan["sum_us"],
                      storage=plan.get("storage"),
                      host_us=plan["host_us"], runs=plan["runs"], min_us=plan["whole_min_us"], p90_us=plan["whole_p90_us"])

        section.attempt(what, part, keep)


def of_job(preset, size, batch):
    return [*(["--preset", preset] if preset else []), "--size", size, "--guidance", 1 if batch == 1 else 3]


def timed_row(section, preset, network, size, batch, dtype, whole_us, host_us=None, storage=None, **others):
    """Add the row of a network that was timed, with steps and bytes from its plan.

    `storage` is how the program stored the network. Files in f16 keep their weights so beside f32.
    """
    row = {"preset": preset or "mini", "network": network, "size": size, "batch": batch, "dtype": dtype,
           "whole_us": whole_us, "host_us": host_us, **others}
    section.record["networks"].append(row)
    arguments = [network, *of_job(preset, size, batch)]

    def keep(planned):
        of = planned["networks"][0]
        by_storage = {memory["storage"]: memory for memory in of["memory"]}
        memory = by_storage.get(storage) or by_storage[dtype]
        row.update((key, of[key]) for key in ("steps", "fewest_steps"))
        sizes = ("bytes_moved", "fewest_bytes_moved", "weight_bytes", "activation_bytes")
        row.update((key, memory[key]) for key in sizes)

    section.attempt("  its plan", lambda left: section.program.plan(arguments, max(left, 10)), keep)


def again(section, when):
    """Time the UNet at 512 pixels once more, beside a peer. A GPU's clocks may change in the course of a run."""
    def run(left):
        return section.program.bench(["--plan", "unet", *of_job(FULL, 512, 1)], min(20, left), "f16", within=0.4)

    def keep(measured):
        plan = measured["plan"]
        section.record["repeats"].append({"what": what, "when": when, "whole_us": plan["whole_us"],
                                          "min_us": plan["whole_min_us"], "runs": plan["runs"]})

    what = "unet at 512, batch 1, f16"
    section.attempt(f"{what}, {when}", run, keep)


def paper(record):
    """Return the ratios of MobileDiffusion's times to Stable Diffusion 1.5's, here and in the paper.

    Both are taken at 512 pixels and batch 1, for each storage type.
    """
    found = {(r["preset"], r["network"], r["dtype"]): r["whole_us"] for r in record["networks"]
             if r["size"] == 512 and r["batch"] == 1}
    rows = []
    for network, (ours, theirs) in PAPER.items():
        for dtype in ("f16", "f32"):
            mobile = found.get((FULL, network, dtype))
            stable = found.get(("sd15", "unet" if network == "unet" else "vae-decoder", dtype))
            if mobile and stable:
                rows.append({"network": network, "dtype": dtype, "ours_ms": mobile / 1e3, "sd15_ms": stable / 1e3,
                             "ratio": mobile / stable, "paper_ms": ours, "paper_sd15_ms": theirs,
                             "paper_ratio": ours / theirs})
    return rows


def pictures(section, models, dtypes):
    """Measure whole pictures in one process: the first, later ones, and memory."""
    for model in models:
        for dtype in dtypes:
            preset = [] if model == "mini" else ["--preset", model]
            # The starts that follow need about the same time.
            run = lambda left: section.program.bench(["--picture", *preset], left / 2, dtype)
            row = {"model": model, "dtype": dtype}
            keep = lambda measured: section.record["pictures"].append(row | measured["picture"])
            section.attempt(f"pictures of {model}, {dtype}", run, keep)


def starts(section, models, dtypes):
    """Measure the time from process start to the picture on disk, with empty shader caches and with full ones."""
    for model in models:
        for dtype in dtypes:
            with tempfile.TemporaryDirectory() as folder:
                keep_variants(Path(folder))
                run = lambda left: one_start(section.program, model, dtype, Path(folder), left)
                row = {"model": model, "dtype": dtype, "cold": None, "warm": None}
                if section.attempt(f"cold start of {model}, {dtype}", run, lambda cold: row.update(cold=cold)):
                    section.record["starts"].append(row)
                    # Without the cold start, there would be no cache.
                    section.attempt(f"warm start of {model}, {dtype}", run, lambda warm: row.update(warm=warm))


def keep_variants(folder):
    """Make the cache folder of starts, empty but for the variants that `bench --tune` saved.

    They decide which shaders run, here as in all other measurements, and nothing in them is compiled.
    """
    place = folder / "cache" / "mobilediffusion"
    place.mkdir(parents=True)
    user = os.environ.get("XDG_CACHE_HOME", "")
    user = Path(user) if os.path.isabs(user) else Path.home() / ".cache"
    saved = user / "mobilediffusion" / "variants.json"
    if saved.is_file():
        shutil.copyfile(saved, place / saved.name)


def one_start(program, model, dtype, folder, limit):
    # All caches of compiled shaders, the program's and the drivers', are placed in the folder and turned on.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MESA_SHADER_CACHE", "__GL_SHADER_DISK_CACHE"))}
    cache = str(folder / "cache")
    env |= {"XDG_CACHE_HOME": cache, "MESA_SHADER_CACHE_DIR": cache, "__GL_SHADER_DISK_CACHE": "1",
            "__GL_SHADER_DISK_CACHE_PATH": cache}
    command = [program.path, "generate", "red apple", "-o", folder / "x.png", "--force", "--json"]
    command += ["--device", program.device, *storage(dtype)]
    command += [] if model == "mini" else ["--preset", model, "--weights", "random:0"]
    out, seconds = execute(command, limit, env)
    return {"seconds": seconds, "phases": json.loads(out)["seconds"]}
