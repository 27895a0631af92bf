//! Sheets of several pictures.

use super::Picture;
use crate::error::ModelError;
use crate::pipeline::free_memory;
use mobilediffusion_graph::Device;

/// White sheet, nearly square, that is filled with pictures of one size, row by row.
#[derive(Clone, Debug)]
pub struct Sheet {
    whole: Picture,
    /// Number of pictures that it is for.
    count: usize,
    /// Number of pictures in a row.
    columns: usize,
    /// Width and height of a picture in pixels.
    size: (usize, usize),
    /// Number of pictures so far.
    placed: usize,
}

impl Sheet {
    /// Creates an empty sheet for `count` pictures of `width` x `height` pixels.
    ///
    /// # Errors
    /// [`ModelError::SheetTooLarge`] if the memory that is free does not suffice.
    ///
    /// # Panics
    /// If `count` or a side is 0.
    pub fn new(count: usize, width: usize, height: usize) -> Result<Self, ModelError> {
        Self::within(free_memory(&Device::CPU), (count, width, height))
    }

    /// Creates an empty sheet in so many bytes of memory, or in what the system gives where that is unknown. A system
    /// may give more than it has, and end the program that uses it.
    fn within(free: Option<u64>, (count, width, height): (usize, usize, usize)) -> Result<Self, ModelError> {
        assert!(count > 0 && width > 0 && height > 0, "{count} pictures of {width}x{height} pixels make no sheet");
        let columns = count.isqrt() + usize::from(count.isqrt().pow(2) < count);
        let rows = count.div_ceil(columns);
        let too_large = || ModelError::SheetTooLarge { count, width, height };
        let sides = columns.checked_mul(width).zip(rows.checked_mul(height));
        let bytes = sides.and_then(|(width, height)| width.checked_mul(height)?.checked_mul(4));
        let ((all_width, all_height), bytes) = sides.zip(bytes).ok_or_else(too_large)?;
        if free.is_some_and(|free| bytes as u64 > free) {
            return Err(too_large());
        }
        let mut rgba = Vec::new();
        rgba.try_reserve_exact(bytes).map_err(|_| too_large())?;
        rgba.resize(bytes, 255);
        let whole = Picture { width: all_width, height: all_height, rgba };
        Ok(Self { whole, count, columns, size: (width, height), placed: 0 })
    }

    /// Copies a picture to the next place.
    ///
    /// # Panics
    /// If the picture has another size than the sheet's, `rgba` does not have `4 * width * height` bytes, or the sheet
    /// is full.
    pub fn place(&mut self, picture: &Picture) {
        assert_eq!((picture.width, picture.height), self.size, "the pictures of a sheet have one size");
        assert!(picture.is_whole(), "a picture holds 4 * width * height bytes");
        let (column, row) = (self.placed % self.columns, self.placed / self.columns);
        assert!(self.placed < self.count, "the sheet is full");
        let lines = self.whole.rgba.chunks_exact_mut(4 * self.whole.width).skip(row * picture.height);
        for (to, from) in lines.zip(picture.rgba.chunks_exact(4 * picture.width)) {
            to[4 * column * picture.width..][..from.len()].copy_from_slice(from);
        }
        self.placed += 1;
    }

    /// Returns the number of pictures so far.
    pub fn placed(&self) -> usize {
        self.placed
    }

    /// Returns the sheet. Places without a picture are white.
    #[must_use]
    pub fn into_picture(self) -> Picture {
        self.whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_lie_side_by_side_in_rows() {
        let picture = |number: u8| Picture { width: 2, height: 2, rgba: (0..16).map(|i| 16 * number + i).collect() };
        let mut sheet = Sheet::new(3, 2, 2).expect("it is small");
        (0..3).for_each(|number| sheet.place(&picture(number)));
        // Lines of two pixels, each with the number of its first byte; those of no picture are white.
        let whole = sheet.into_picture();
        let firsts: Vec<u8> = whole.rgba.chunks_exact(8).map(|line| line[0]).collect();
        assert_eq!((whole.width, firsts.as_slice()), (4, &[0, 16, 8, 24, 32, 255, 40, 255][..]));
    }

    #[test]
    fn a_sheet_is_nearly_square_and_refused_where_it_does_not_fit() {
        for (count, expected) in [(1, (2, 3)), (2, (4, 3)), (4, (4, 6)), (5, (6, 6)), (9, (6, 9)), (10, (8, 9))] {
            let sheet = Sheet::new(count, 2, 3).expect("it is small").into_picture();
            assert_eq!((sheet.width, sheet.height), expected, "{count} pictures");
        }
        let picture = Picture { width: 2, height: 3, rgba: vec![0; 24] };
        let mut sheet = Sheet::new(5, 2, 3).expect("it is small");
        (0..5).for_each(|_| sheet.place(&picture));
        let sixth = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sheet.place(&picture)));
        assert!(sixth.is_err() && sheet.placed() == 5, "a place without a picture is left, but it is for five");
        for (free, fits) in [(None, true), (Some(96), true), (Some(95), false)] {
            let sheet = Sheet::within(free, (4, 2, 3));
            let said = if fits { sheet.is_ok() } else { matches!(sheet, Err(ModelError::SheetTooLarge { .. })) };
            assert!(said, "96 bytes in {free:?}: {sheet:?}");
        }
        for count in [1 << 40, usize::MAX] {
            let refused = Sheet::new(count, 1 << 21, 1 << 21);
            assert!(matches!(refused, Err(ModelError::SheetTooLarge { .. })), "{count}: {refused:?}");
        }
    }
}
