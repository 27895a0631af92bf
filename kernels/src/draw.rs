//! Random problems for property tests, drawn by a list of numbers.
//!
//! A family builds a problem from choices, and the test supplies one number for each choice. Options are listed from
//! the simplest to the most complex, and a smaller number takes an earlier option. A test that shrinks the numbers of a
//! failure, as proptest does, therefore ends at the simplest problem that fails.

/// Sequence of choices. After the last number, every choice takes the first option.
#[derive(Clone, Debug)]
pub struct Draw<'a> {
    numbers: std::slice::Iter<'a, u32>,
}

impl<'a> Draw<'a> {
    /// Makes a sequence of choices from `numbers`, one number for each choice.
    pub fn new(numbers: &'a [u32]) -> Self {
        Self { numbers: numbers.iter() }
    }

    /// Draws one of the options.
    ///
    /// # Panics
    /// If `options` is empty.
    pub fn of<T: Copy>(&mut self, options: &[T]) -> T {
        let number = u128::from(self.numbers.next().copied().unwrap_or(0));
        options[((number * options.len() as u128) >> 32) as usize]
    }

    /// Draws `false` or `true`.
    pub fn flip(&mut self) -> bool {
        self.of(&[false, true])
    }

    /// Draws a size near the edges of a tile of `tile` elements: 1, small primes, the tile's size and its neighbours,
    /// or a little more than two tiles.
    pub fn size(&mut self, tile: usize) -> usize {
        self.of(&[1, 2, 7, 13, 29, tile.max(2) - 1, tile, tile + 1, 2 * tile + 3])
    }

    /// Draws a number of channels: a multiple of four, or one to three more.
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
