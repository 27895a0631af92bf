//! Random problems for property tests: choices made by a list of numbers.
//!
//! A family makes a problem out of choices, and the test supplies the numbers that make them. Options are written from
//! the simplest on, and a smaller number takes an earlier one: a test that makes failing numbers smaller, as proptest
//! does, ends at the simplest problem that fails.

/// A source of choices. Where its numbers have run out it takes the first option.
#[derive(Clone, Debug)]
pub struct Draw<'a> {
    numbers: std::slice::Iter<'a, u32>,
}

impl<'a> Draw<'a> {
    /// Choices made by these numbers, one each.
    pub fn new(numbers: &'a [u32]) -> Self {
        Self { numbers: numbers.iter() }
    }

    /// One of the options.
    ///
    /// # Panics
    /// If there is none.
    pub fn of<T: Copy>(&mut self, options: &[T]) -> T {
        let number = u128::from(self.numbers.next().copied().unwrap_or(0));
        options[((number * options.len() as u128) >> 32) as usize]
    }

    /// One of two.
    pub fn flip(&mut self) -> bool {
        self.of(&[false, true])
    }

    /// A size near the edges of a tile of this size: 1, small primes, the tile and its neighbours, more than two tiles.
    pub fn size(&mut self, tile: usize) -> usize {
        self.of(&[1, 2, 7, 13, 29, tile.max(2) - 1, tile, tile + 1, 2 * tile + 3])
    }

    /// Channels: whole vec4s, and one to three more.
    pub fn channels(&mut self) -> usize {
        self.of(&[1, 4, 3, 8, 5, 14, 16, 23, 36, 67])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_numbers_take_early_options_and_every_option_can_be_taken() {
        let numbers = [0, u32::MAX / 2, u32::MAX];
        let mut draw = Draw::new(&numbers);
        assert_eq!([(); 4].map(|()| draw.of(&['a', 'b', 'c'])), ['a', 'b', 'c', 'a']);
    }

    #[test]
    fn sizes_lie_about_the_tile() {
        let size = |number: u32| Draw::new(&[number]).size(64);
        let step = u32::MAX / 9 + 1;
        let sizes: Vec<usize> = (0..9).map(|i| size(i * step)).collect();
        assert_eq!(sizes, [1, 2, 7, 13, 29, 63, 64, 65, 131]);
        assert_eq!(Draw::new(&[5 * step]).size(1), 1, "no size is zero");
    }
}
