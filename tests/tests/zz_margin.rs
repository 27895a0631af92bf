//! temporary
#![allow(clippy::print_stdout, reason = "temporary")]
use mobilediffusion_kernels::{FAMILIES, Storage, Tolerance, check};
use mobilediffusion_tests::{judge, run_cpu, gpu::run_gpu};
#[test]
fn margins() {
    let gpu = pollster::block_on(mobilediffusion_runtime::Gpu::open(&mobilediffusion_runtime::Select::Named("0".into()))).expect("gpu");
    for f in FAMILIES.iter().filter(|f| ["attention","embedding","timestep_embedding","ddim_step","one_step_x0"].contains(&f.name)) {
        let worst = |gpu: Option<&mobilediffusion_runtime::Gpu>| {
            let mut worst: f64 = 0.0; let mut which = String::new();
            for (seed, case) in (1..).zip((f.cases)()) {
                let inputs = check::inputs(&case, seed);
                let out = match gpu { Some(g) => run_gpu(g, Storage::F32, &case, &inputs).expect("run"), None => run_cpu(&case, &inputs) };
                let t = case.kernel.tolerance();
                let mut share = 1.0; // smallest passing share by bisection in halves
                while share > 1e-3 && judge(&case, seed, &inputs, &out, Tolerance { absolute: t.absolute * share, relative: t.relative * share }).is_ok() { share *= 0.8; }
                if share > worst { worst = share; which = format!("{:?}", case.kernel); }
            }
            (worst, which)
        };
        println!("{} cpu {:?}", f.name, worst(None));
        println!("{} gpu {:?}", f.name, worst(Some(&gpu)));
    }
    for f in FAMILIES.iter().filter(|f| f.name == "attention") {
        for case in (f.model_shapes)() {
            let inputs = check::inputs(&case, 1);
            run_cpu(&case, &inputs);
            let mut best = f64::MAX;
            for _ in 0..20 { let t = std::time::Instant::now(); run_cpu(&case, &inputs); best = best.min(t.elapsed().as_secs_f64()); }
            println!("{:?}: {:.3} ms, {:.1} GMAC/s", case.kernel, best * 1e3, case.kernel.cost().macs as f64 / best / 1e9);
        }
    }
}
