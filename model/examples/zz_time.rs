//! timing
#![allow(clippy::print_stdout, reason = "tmp")]
use mobilediffusion_model::*;
fn main() {
    let preset = std::env::args().nth(1).unwrap();
    let size: usize = std::env::args().nth(2).unwrap().parse().unwrap();
    let source = Source::synthetic(&preset, 1).unwrap();
    let mut options = Options::new(&source.config);
    options.width = size;
    options.height = size;
    options.device = DeviceChoice::Cpu;
    let t = std::time::Instant::now();
    let mut p = Pipeline::load(source, options, &mut |_| ()).unwrap();
    println!("load {:?}", t.elapsed());
    for (n, s) in p.plans() {
        println!("{n}: {s}");
    }
    for _ in 0..2 {
        let mut last = std::time::Instant::now();
        let mut ph = Phase::Load;
        p.generate("red apple", 0, &mut |g| {
            if g.step == g.total {
                println!("{} {:?}", g.phase, last.elapsed());
                last = std::time::Instant::now();
                ph = g.phase;
            }
        })
        .unwrap();
    }
}
