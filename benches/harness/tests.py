"""Tests of the parts of the harness that need no device. Run `python3 -m unittest harness.tests` in `benches`."""

import shutil
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from . import jobs, nvidia, peers, record, sections, table
from .jobs import Budget, Failed, Program, attempt, execute, json_lines, storage


def runs(process):
    """Return whether a process is running. A zombie, whose exit status nobody has read yet, is not."""
    time.sleep(0.2)
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


class Jobs(unittest.TestCase):
    def test_what_hangs_is_killed_with_all_it_started(self):
        script = ("import subprocess, sys, time; p = subprocess.Popen(['sleep', '60'])\nprint('loading', file=sys.stderr)\n"
                  "print('{\"process\": %d}\\n[1]\\n2' % p.pid, flush=True); time.sleep(60)")
        start = time.monotonic()
        values, why = json_lines([sys.executable, "-c", script], 2)
        self.assertLess(time.monotonic() - start, 20)
        self.assertEqual(len(values), 1, "what came before the end is kept, and only objects are")
        self.assertFalse(runs(values[0]["process"]), "what it started goes on")
        self.assertEqual(why, "killed after 2 s: loading")
        with self.assertRaisesRegex(Failed, "killed after 1 s"):
            execute(["sleep", "60"], 1)

    def test_failures_say_why(self):
        with self.assertRaisesRegex(Failed, "^of this$"):
            execute([sys.executable, "-c", "import sys; sys.exit('error: of this')"], 20)
        usage = "import sys; sys.exit('error: of that\\n\\nFor more information, try --help.')"
        with self.assertRaisesRegex(Failed, "^of that$"):
            execute([sys.executable, "-c", usage], 20)
        with self.assertRaisesRegex(Failed, "signal 11 .*: loading$"):
            execute(["sh", "-c", "echo loading >&2; echo note: more >&2; kill -SEGV $$"], 20)
        panic = "thread 'main' (7) panicked at src/main.rs:5:9:\n{}\nnote: run with `RUST_BACKTRACE=1`\n"
        for end, why in (("exit 101", "^of a panic$"), ("kill -ABRT $$", "signal 6 .*: of a panic$")):
            with self.assertRaisesRegex(Failed, why):
                execute(["sh", "-c", f"echo \"$1\" >&2; {end}", "sh", panic.format("of a panic")], 20)
        with self.assertRaisesRegex(Failed, "cannot run no-such-program"):
            execute(["no-such-program"], 20)
        with self.assertRaisesRegex(Failed, "no time left"):
            attempt(["true"], 0.5)

    def test_what_does_not_die_is_left_behind(self):
        process = mock.Mock(wait=mock.Mock(side_effect=subprocess.TimeoutExpired("x", 1)))
        with mock.patch.object(jobs, "kill"):
            code, dead = jobs.wait(process, 1)
        self.assertEqual(jobs.reason(code, "", 1, dead), "killed after 1 s, but it did not die")

    def test_where_there_are_no_process_groups_the_process_alone_is_killed(self):
        process = subprocess.Popen(["sleep", "60"])
        with mock.patch.object(jobs, "os", SimpleNamespace()):
            self.assertEqual(jobs.wait(process, 0.1), (None, True))
        self.assertLess(process.returncode, 0, "it was killed")

    def test_the_script_runs_without_what_windows_lacks(self):
        script = ("import os, runpy, signal, sys; del os.killpg, signal.SIGHUP\n"
                  "runpy.run_path(sys.argv.pop(1), run_name='__main__')")
        run = Path(__file__).resolve().parents[1] / "run"
        done = attempt([sys.executable, "-c", script, run, "--program", shutil.which("false")], 20)
        self.assertEqual(done.err.splitlines()[-1], "error: it printed nothing", "the program was run, and failed")

    def test_all_that_commands_print_is_logged_and_warnings_are_passed_on(self):
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(jobs, "LOG", jobs.Log()):
            with mock.patch("builtins.print") as said:
                for _ in range(2):
                    execute(["sh", "-c", "echo warning: no such test; echo warning: of this >&2; echo of that >&2"], 20)
                jobs.LOG.open(Path(folder) / "device" / "day.log")
                json_lines([sys.executable, "-c", "print('x' * 300_000); exit('error: at the end')"], 20)
            text = (Path(folder) / "device" / "day.log").read_text()
        self.assertEqual([call.args[0] for call in said.call_args_list], ["warning: of this"])
        for words in ("--- standard error\nwarning: of this\nof that\n--- done, ", "[...]", "--- at the end, "):
            self.assertIn(words, text)
        self.assertLess(len(text), 250_000)

    def test_a_section_leaves_its_time_to_the_next(self):
        now = [0.0]
        budget = Budget(100, clock=lambda: now[0])
        budget.section(0.2)
        self.assertEqual(budget.left(), 20)
        now[0] = 5
        budget.section(0.5)
        self.assertEqual(budget.left(), 45)
        now[0] = 60
        self.assertLess(budget.left(), 0)

    def test_jobs_begin_nothing_new_after_their_equal_part(self):
        for jobs in range(1, 20):
            limit, within = sections.share(jobs)
            self.assertLessEqual(limit * within, 1 / jobs + 1e-9)
            self.assertLessEqual(within, 0.6, "what was begun last has to end before it is killed")

    def test_what_was_measured_before_something_failed_is_kept(self):
        script = "#!/bin/sh\nfor last; do case $before in --json) echo '{\"shapes\": [1]}' >$last;; esac; before=$last; done\n"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "program"
            path.write_text(script + "echo error: one is wrong >&2; exit 1\n")
            path.chmod(0o755)
            section = sections.Section(Program(path, "cpu"), Budget(100), {"left_out": []})
            with mock.patch("builtins.print"):
                got = section.attempt("kernels", lambda left: section.program.bench(["add"], 20))
        self.assertEqual(got["shapes"], [1])
        self.assertEqual(section.record["left_out"], [{"what": "part of kernels", "why": "one is wrong"}])
        self.assertEqual(section.failed, ["kernels: one is wrong"], "`run` ends with an error")

    def test_a_wrong_network_is_an_error_and_one_without_room_is_none(self):
        def failing(message):
            def run(left):
                raise Failed(message)
            return run

        section = sections.Section(None, Budget(100), {"left_out": []})
        wrong = "the plan computes a wrong result: step 3, linear at `proj`"
        with mock.patch("builtins.print"):
            self.assertIsNone(section.attempt("unet", failing(wrong)))
            self.assertIsNone(section.attempt("sd15", failing("weights: out of memory")))
        self.assertEqual([row["what"] for row in section.record["left_out"]], ["unet", "sd15"])
        self.assertEqual(section.failed, [f"unet: {wrong}"])
        sources = [Path(__file__).parents[2] / folder for folder in ("cli/src/bench", "model/src")]
        program = "".join(file.read_text() for folder in sources for file in folder.glob("*.rs"))
        self.assertTrue(all(words in program for words in sections.WRONG), "the program says it in other words")

    def test_an_unexpected_answer_ends_one_job_and_each_job_is_saved(self):
        saved = mock.Mock()
        section = sections.Section(None, Budget(100), {"left_out": [], "pictures": []}, saved)
        answers = {"mini": {"no picture": 1}, sections.FULL: {"picture": {"first_seconds": 1.0}}}
        bench = lambda arguments, left, dtype: answers[arguments[-1] if len(arguments) > 1 else "mini"]
        section.program = SimpleNamespace(bench=bench)
        with mock.patch("builtins.print"):
            sections.pictures(section, ["mini", sections.FULL], ["f16"])
        self.assertEqual([row["model"] for row in section.record["pictures"]], [sections.FULL])
        self.assertEqual(section.record["left_out"], [{"what": "pictures of mini, f16", "why": "KeyError: 'picture'"}])
        self.assertEqual((saved.call_count, len(section.failed)), (2, 1))

    def test_a_warm_start_needs_a_cold_one(self):
        section = sections.Section(SimpleNamespace(device="gpu", path="x"), Budget(100), {"left_out": [], "starts": []})
        with mock.patch("builtins.print"), mock.patch.object(sections, "execute", side_effect=Failed("lost")) as called:
            sections.starts(section, ["mini"], ["f16"])
        self.assertEqual((called.call_count, section.record["starts"]), (1, []))
        self.assertEqual(called.call_args.args[2]["__GL_SHADER_DISK_CACHE"], "1")

    def test_the_first_command_is_tried_twice(self):
        found = {"peaks": {}, "machine": {"device": "A GPU (discrete GPU, vulkan)"}}
        program = SimpleNamespace(bench=mock.Mock(side_effect=[Failed("killed", "of this\n"), found]))
        section = sections.Section(program, Budget(480), {"peaks": {}, "machine": {}})
        with mock.patch("builtins.print") as said:
            sections.machine(section, ["f32"])
        self.assertEqual(section.record["machine"]["kind"], "discrete GPU")
        self.assertEqual(program.bench.call_args.args[1], 144)
        self.assertIn("of this\n", said.call_args.args[0])

    def test_a_fallback_is_refused_where_there_is_an_nvidia_gpu(self):
        machine = {"device": "CPU, 2 threads", "kind": "cpu", "clocks": "NVIDIA A1, 1.2, 3 MHz"}
        for asked in ("auto", "gpu"):
            with self.assertRaisesRegex(Failed, "took CPU, 2 threads, but nvidia-smi finds NVIDIA A1:"):
                sections.refuse_fallback(machine, asked)
        right = (("cpu", {}), ("llvmpipe", {}), ("auto", {"clocks": "unknown"}), ("auto", {"kind": "discrete GPU"}))
        for asked, change in right:
            sections.refuse_fallback(machine | change, asked)

    def test_starts_compile_the_variants_that_were_tuned(self):
        script = "#!/bin/sh\ncd $XDG_CACHE_HOME\nprintf '{\"seconds\": \"%s\"}' \"$(cat $(find . -type f) </dev/null)\"\n"
        for saved in ("the fastest", ""):
            with tempfile.TemporaryDirectory() as folder:
                program = Path(folder) / "program"
                program.write_text(script)
                program.chmod(0o755)
                user = Path(folder) / "user" / "mobilediffusion"
                user.mkdir(parents=True)
                (user / "pipelines").write_text("compiled")
                if saved:
                    (user / "variants.json").write_text(saved)
                section = sections.Section(Program(program, "cpu"), Budget(100), {"left_out": [], "starts": []})
                with mock.patch("builtins.print"), mock.patch.dict("os.environ", XDG_CACHE_HOME=str(user.parent)):
                    sections.starts(section, ["mini"], ["f32"])
            row, = section.record["starts"]
            self.assertEqual([row[start]["phases"] for start in ("cold", "warm")], 2 * [saved], "and no pipelines")

    def test_weights_of_8_bits_are_asked_for_everywhere(self):
        self.assertEqual(storage("f16"), ["--dtype", "f16", "--weights-dtype", "floats"])
        self.assertEqual(storage("f16 with int8 weights"), ["--dtype", "f16", "--weights-dtype", "int8"])
        for kind, dtypes, asked in (("cpu", ["f32"], {"f32 with int8 weights"}), ("software", ["f32"], {"f32 with int8 weights"}),
                                    ("discrete GPU", ["f32", "f16"], {"f16 with int8 weights"})):
            jobs = sections.network_jobs(kind, dtypes, quick=False)
            self.assertEqual({job[-1] for job in jobs} - set(dtypes), asked)
            self.assertEqual(len(set(jobs)), len(jobs), "nothing is timed twice")


class Peers(unittest.TestCase):
    """Networks on the CPU, with a script that prints what the peers' script would."""

    SAYS = """import sys, json
name = sys.argv[2]
if name == "decoder": sys.exit("decoder: too far")
print(json.dumps({"versions": {"onnxruntime": "1.2", "torch": "3.4"}, "networks": [
    {"network": name, "seconds": {"ours": 1.0, "onnxruntime": 2.0, "torch": 4.0}}]}))"""

    def on_cpu(self, modules):
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            (folder / "networks.py").write_text(self.SAYS)
            program = SimpleNamespace(path=folder / "mobilediffusion", plan=mock.Mock(side_effect=Failed("no plan")))
            section = sections.Section(program, Budget(60), {"left_out": [], "peers": [], "networks": []})
            with mock.patch.multiple(peers, SCRIPTS=folder, MODULES=modules), mock.patch("builtins.print"):
                peers.on_cpu(section)
        return section.record

    def test_networks_beside_their_peers_become_rows(self):
        got = self.on_cpu(("json",))
        rows = [(r["peer"], r["what"], r["seconds"], r["ratio"]) for r in got["peers"]]
        self.assertIn(("onnxruntime 1.2", "unet at 512, batch 1, f32", 2.0, 0.5), rows)
        self.assertIn(("PyTorch 3.4", "text at 512, batch 1, f32", 4.0, 0.25), rows)
        self.assertEqual(len(rows), 4)
        self.assertIn({"what": "onnxruntime and PyTorch, decoder", "why": "decoder: too far"}, got["left_out"])
        self.assertEqual([(r["network"], r["whole_us"]) for r in got["networks"]], [("text", 1e6), ("unet", 1e6)])
        # Networks timed with their peers are not timed again, and those that cannot finish in time are not begun.
        program = SimpleNamespace(bench=mock.Mock(side_effect=Failed("no bench")))
        section = sections.Section(program, Budget(10), got)
        with mock.patch("builtins.print"):
            jobs = [(sections.FULL, *job, "f32") for job in (("unet", 512, 1), ("decoder", 512, 1), ("unet", 512, 8))]
            sections.networks(section, jobs)
        self.assertEqual([call.args[0][1] for call in program.bench.call_args_list], ["decoder"])
        self.assertIn("no time left", got["left_out"][-1]["why"])

    def on_gpu(self, minutes, run):
        rows = [{"preset": sections.FULL, "network": "unet", "size": size, "batch": batch, "dtype": "f16", "whole_us": 1e6}
                for size, batch in ((256, 1), (512, 2), (512, 1))]
        record = {"networks": rows, "peers": [], "left_out": [], "kernels": {}, "repeats": []}
        plans = [{"plan": {"whole_us": us, "whole_min_us": us, "runs": 20}} for us in (2e6, 3e6)]
        program = SimpleNamespace(bench=mock.Mock(side_effect=plans), path=Path("/none"))
        section = sections.Section(program, Budget(60 * minutes), record)
        said = []

        def answer(command, left, env=None):
            said.append([str(word) for word in command[2:]])
            jobs = ("unet:512:1:f16", "unet:256:1:f16")
            return [{"job": job, "peer": "p", "seconds": 2.0, "runs": 20} for job in jobs], None
        with mock.patch.object(peers, "json_lines", answer), mock.patch("builtins.print"), \
                mock.patch.object(peers.importlib.util, "find_spec", bool):
            run(section)
        return said, section.record

    def test_a_gpu_is_compared_where_the_bars_are_first(self):
        options = SimpleNamespace(quick=False, peers=Path("/no-such-peers"))
        for minutes, asked in ((8, ["unet:512:1:f16", "compiled"]), (1, ["unet:512:1:f16"])):
            said, got = self.on_gpu(minutes, lambda section: peers.run(section, options, "discrete GPU"))
            self.assertEqual([words[0] for words in said], asked)
            whats = [row["what"] for row in got["left_out"]]
            self.assertEqual("PyTorch compiled" in whats, len(asked) == 1, whats)
            self.assertEqual({row["ratio"] for row in got["peers"]}, {0.5})

    def test_pytorch_is_compared_with_times_around_it(self):
        said, got = self.on_gpu(1, peers.torch)
        self.assertEqual([words[:2] for words in said], [["graph,eager", "unet:512:1:f16"]])
        self.assertEqual([repeat["when"] for repeat in got["repeats"]], ["before PyTorch", "after PyTorch"])
        self.assertEqual([(row["what"], row["ours_seconds"], row["ratio"], row["runs"]) for row in got["peers"]],
                         [("unet at 512, batch 1, f16", 2.0, 1.0, 20), ("unet at 256, batch 1, f16", 1.0, 0.5, 20)])

    def test_what_peers_miss_is_said_once(self):
        got = self.on_cpu(("no_such_module", "json"))
        self.assertEqual(got["peers"], [])
        self.assertEqual(len(got["left_out"]), 1)
        self.assertIn("Python has no no_such_module", got["left_out"][0]["why"])


class Records(unittest.TestCase):
    def whole(self):
        return {
            "format": 1, "date": "2026-01-31", "command": "benches/run", "quick": False, "seconds": 1.0,
            "machine": {"device": "CPU", "kind": "cpu", "clocks": "unknown", "clock": "wall clock"},
            "peaks": {"f32": {"copy_bytes_per_second": 1e9, "flops_per_second": 1e9}},
            "kernels": {"f32": [{"kernel": "add", "shape": "c=4", "median_us": 1.0, "flops_per_second": 1e9,
                                 "bytes_per_second": 1e9, "part_of_limit": 0.5, "part_of_equal_copy": 0.7,
                                 "bound": "memory"}]},
            "networks": [], "paper": [], "pictures": [], "starts": [], "left_out": [],
            "peers": [{"peer": "p", "what": "add", "seconds": 2.0, "ours_seconds": 1.0, "ratio": 0.5}],
        }

    def test_a_whole_record_is_right_and_its_table_has_everything(self):
        self.assertEqual(record.problems(self.whole()), [])
        text = table.markdown(self.whole())
        self.assertIn("| p | add | 2000.00 | 1000.00 | 0.50 |", text)
        self.assertIn("| add | c=4 | 1.0 | 1.0 | 1.00 | 50.0 | memory | 70.0 |  |", text)
        self.assertNotIn("caches", text)
        self.assertNotIn("in a row", text)
        gpu = self.whole()
        gpu["peaks"]["f32"]["launch"] = {"alone_seconds": 2.25e-6, "in_a_row_seconds": 3.5e-6}
        del gpu["kernels"]["f32"][0]["part_of_equal_copy"]
        text = table.markdown(gpu)
        self.assertIn("2.2 us in a pass of its own, 3.5 us in a row", text)
        self.assertIn("| add | c=4 | 1.0 | 1.0 | 1.00 | 50.0 | memory |  |  |", text, "older records have no such share")
        nothing = self.whole()
        nothing["kernels"]["f32"][0].update(part_of_limit=None, flops_per_second=None)
        self.assertEqual(len(record.problems(nothing)), 2, "it is wrong, and there is a table all the same")
        self.assertIn("| add | c=4 | 1.0 |  | 1.00 |  | memory | 70.0 |  |", table.markdown(nothing))
        quick = self.whole()
        quick["kernels"]["f32"][0].update(part_of_limit=2.5, bound="caches")
        self.assertIn("| add | c=4 | 1.0 | 1.0 | 1.00 |  | caches | 70.0 |  |", table.markdown(quick))

    def test_the_state_of_a_gpu_and_repeated_times_have_their_place(self):
        lines = "NVIDIA B2, 1 MHz, 2 MHz, 3.0 W, 40, 0x0000000000000000\nNVIDIA A1, 4 MHz, 5 MHz, 6.0 W, 50, 0x5\n"
        with mock.patch.object(nvidia, "execute", side_effect=[Failed("not a valid field"), (lines, 0.1)]):
            state, = nvidia.states("NVIDIA A1 (discrete GPU, vulkan)", "networks")
        with mock.patch.object(nvidia, "execute", side_effect=Failed("cannot run nvidia-smi")):
            self.assertEqual((nvidia.clocks(), nvidia.states("x", "networks")), (None, []))
        repeats = [{"what": "unet", "when": "before PyTorch", "whole_us": 2e3}]
        text = table.markdown(self.whole() | {"states": [state], "repeats": repeats})
        self.assertIn("| networks | 4 MHz | 5 MHz | 6.0 W | 50 | idle, limit of power |", text)
        self.assertIn("unet, again: before PyTorch 2 ms.", text)

    def test_what_is_wrong_is_named(self):
        for change, named in (
            (lambda r: r.pop("date"), "record.date: missing"),
            (lambda r: r["peers"][0].update(ratio="fast"), "record.peers[0].ratio: expected"),
            (lambda r: r["kernels"]["f32"][0].pop("bound"), "record.kernels.f32[0].bound: missing"),
            (lambda r: r.update(networks={}), "record.networks: expected a list"),
            (lambda r: r.update(seconds=True), "record.seconds: expected"),
        ):
            wrong = self.whole()
            change(wrong)
            self.assertTrue(record.problems(wrong) and record.problems(wrong)[0].startswith(named), record.problems(wrong))

    def test_no_path_of_the_machine_is_kept(self):
        said = {"why": f"{sys.executable}: can't open '{record.ROOT}/benches/peers/x.py'", "b": ["--peers /a/b/c", 1.5]}
        name = sys.executable.split("/")[-1]
        self.assertEqual(record.plain(said), {"why": f"{name}: can't open 'benches/peers/x.py'", "b": ["--peers c", 1.5]})
        self.assertEqual(record.plain("640 GB/s, shaders/x.wgsl"), "640 GB/s, shaders/x.wgsl")

    def test_processors_of_one_name_are_told_apart(self):
        info = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: A CPU\nflags\t\t: fpu sse2 avx avx2\n\nprocessor\t: 1\n"
        self.assertEqual(sections.processor(info), "family 25, model 1, avx2")
        self.assertEqual(sections.processor(info.replace("avx2", "avx512f")), "family 25, model 1, avx512f")
        machine = {"device": "CPU, A CPU, 2 threads", "kind": "cpu", "processor": "family 25, model 1, avx2"}
        json_file, _ = record.paths(record.Path("records"), {"machine": machine, "date": "2026-01-02"})
        self.assertEqual(str(json_file), "records/cpu-a-cpu-2-threads-family-25-model-1-avx2/2026-01-02.json")
        self.assertIsNone(sections.processor("BogoMIPS\t: 48.00\nFeatures\t: fp asimd\n"))

    def test_devices_become_folders(self):
        self.assertEqual(record.slug("llvmpipe (LLVM 15.0.6, 256 bits)"), "llvmpipe-llvm-15-0-6-256-bits")


if __name__ == "__main__":
    unittest.main()
