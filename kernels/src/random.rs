//! Pseudo-random numbers from a seed, which are the same on every platform.

/// Seeded pseudo-random generator (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Makes a generator. Equal seeds give equal sequences.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Returns a number that is uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Returns a number that is uniform in `0..bound`.
    pub fn below(&mut self, bound: u32) -> u32 {
        (self.uniform() * f64::from(bound)) as u32
    }

    /// Returns an index that is uniform in `0..len`.
    pub fn index(&mut self, len: usize) -> usize {
        // A product with a length beyond 2^53 may be rounded up to it.
        ((self.uniform() * len as f64) as usize).min(len - 1)
    }

    /// Returns an approximately normally distributed number: the sum of twelve uniform numbers, minus six. Its absolute
    /// value is at most six.
    pub fn normal(&mut self) -> f32 {
        ((0..12).map(|_| self.uniform()).sum::<f64>() - 6.0) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_splitmix64() {
        let mut random = Random::new(1_234_567);
        let first = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([(); 3].map(|()| random.bits()), first, "the published sequence of this seed");
    }

    #[test]
    fn indices_cover_a_list_and_stay_in_it() {
        let mut random = Random::new(1);
        let mut met = [false; 3];
        (0..100).for_each(|_| met[random.index(3)] = true);
        assert_eq!(met, [true; 3], "an index was never drawn");
        assert_eq!((0..10).map(|_| random.index(1)).max(), Some(0), "a list of one element");
    }
}
