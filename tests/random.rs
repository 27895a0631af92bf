//! Property tests of kernels: random problems with sizes near the edges of the tiles, shrunk to the simplest failure.

use mobilediffusion_kernels::draw::Draw;
use mobilediffusion_kernels::{Case, Family};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

/// Number of random choices for a problem, more than any family makes.
const CHOICES: usize = 24;

/// Runs `check` on `count` random problems of a family. Each comes with a seed for its operands and with further random
/// choices for the caller. The problems are the same in every run.
///
/// # Errors
/// Returns the message of `check` for the simplest failing problem found.
pub fn problems(
    family: &Family,
    count: u32,
    check: impl Fn(&Case, u64, &mut Draw<'_>) -> Result<(), String>,
) -> Result<(), String> {
    let config = Config { cases: count, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let numbers = proptest::collection::vec(proptest::num::u32::ANY, CHOICES);
    let verdict = runner.run(&(numbers, 0..1_000_u64), |(numbers, seed)| {
        let mut draw = Draw::new(&numbers);
        let case = (family.random)(&mut draw);
        if let Some(why) = case.kernel.refusal() {
            return Err(TestCaseError::fail(format!("{:?} is refused: {why}", case.kernel)));
        }
        check(&case, seed, &mut draw).map_err(TestCaseError::fail)
    });
    verdict.map_err(|error| format!("{}: {error}", family.name))
}
