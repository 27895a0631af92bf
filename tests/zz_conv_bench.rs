//! throwaway
use mobilediffusion_kernels::*;
#[test]
#[ignore]
#[allow(clippy::print_stdout)]
fn bench() {
    let plain = |h: usize, ci, co| Conv2d {
        n: 1,
        h,
        w: h,
        ci,
        co,
        kernel: 3,
        stride: 1,
        pad_start: 1,
        pad_end: 1,
        upsample: 1,
        bias: true,
        shift: false,
        activation: Activation::None,
        residual: false,
    };
    let shapes = [
        plain(64, 320, 320),
        plain(512, 64, 64),
        plain(256, 128, 128),
        Conv2d { upsample: 2, ..plain(16, 1024, 1024) },
        plain(64, 8, 320),
        plain(512, 64, 3),
        plain(64, 320, 8),
        Conv2d { stride: 2, ..plain(32, 640, 640) },
    ];
    for s in shapes {
        let ops = s.operands();
        let ins: Vec<Vec<f32>> = ops
            .iter()
            .filter(|o| o.access == Access::Read)
            .map(|o| (0..o.host_len()).map(|i| (i % 17) as f32 * 0.1 - 0.8).collect())
            .collect();
        let ins: Vec<&[f32]> = ins.iter().map(|v| v.as_slice()).collect();
        let mut y = vec![0f32; ops.last().unwrap().host_len()];
        let mut best = f64::MAX;
        let mut all = vec![];
        for _ in 0..7 {
            let t = std::time::Instant::now();
            s.cpu(&ins, &mut [&mut y]);
            let e = t.elapsed().as_secs_f64();
            all.push(e);
            best = best.min(e);
        }
        all.sort_by(f64::total_cmp);
        println!(
            "{}x{} up{} s{} {}->{}: best {:.2} ms {:.1} GFLOP/s, median {:.1}",
            s.h,
            s.w,
            s.upsample,
            s.stride,
            s.ci,
            s.co,
            best * 1e3,
            s.cost().flops as f64 / best / 1e9,
            s.cost().flops as f64 / all[3] / 1e9
        );
    }
}
