//! Pictures in memory, the pipeline's input and output.

mod file;
mod sheet;

pub use sheet::Sheet;

use image::imageops::FilterType;
use image::{DynamicImage, RgbaImage};

/// Picture of 8-bit RGBA pixels. Pictures that are drawn or read from files are opaque; transparent pixels count as white.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Red, green, blue and alpha of every pixel, row by row: `4 * width * height` bytes.
    pub rgba: Vec<u8>,
}

/// Mask that says how much of every pixel is drawn anew: 0 keeps the pixel, 255 replaces it, values between mix both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// One value per pixel, row by row: `width * height` bytes.
    pub values: Vec<u8>,
}

impl Mask {
    /// Converts a picture to a mask by its brightness: white is drawn anew, black is kept, grey is mixed. Transparent
    /// pixels count as white.
    pub fn of(picture: &Picture) -> Self {
        // Luma with the weights of ITU-R BT.709 in 1/65536. The weights sum to one, so that white becomes 255.
        let luma = |p: [u8; 3]| (13_933 * u32::from(p[0]) + 46_871 * u32::from(p[1]) + 4_732 * u32::from(p[2])) >> 16;
        let values = picture.rgb().map(|pixel| luma(pixel) as u8).collect();
        Self { width: picture.width, height: picture.height, values }
    }
}

/// Blends a pixel of straight alpha with white.
fn over_white([r, g, b, alpha]: [u8; 4]) -> [u8; 3] {
    let alpha = u32::from(alpha);
    [r, g, b].map(|value| ((u32::from(value) * alpha + 255 * (255 - alpha) + 127) / 255) as u8)
}

/// Largest difference over a whole picture that nobody can see.
const FLAT: u8 = 2;

impl Picture {
    /// Returns red, green and blue of every pixel, on a white ground.
    pub(crate) fn rgb(&self) -> impl Iterator<Item = [u8; 3]> {
        self.rgba.as_chunks().0.iter().map(|pixel| over_white(*pixel))
    }

    /// Blends every pixel with white, which makes the picture opaque.
    fn put_on_white(&mut self) {
        for pixel in self.rgba.as_chunks_mut().0 {
            let [r, g, b] = over_white(*pixel);
            *pixel = [r, g, b, 255];
        }
    }

    /// Whether `rgba` is as long as the size demands.
    fn is_whole(&self) -> bool {
        self.width.checked_mul(self.height).and_then(|pixels| pixels.checked_mul(4)) == Some(self.rgba.len())
    }

    /// Crops and scales the picture to fill `width` x `height` pixels, both at least 1. The middle of the picture is
    /// kept. A picture that is scaled becomes opaque, on a white ground.
    ///
    /// # Panics
    /// If a side is 0, or `rgba` does not have `4 * width * height` bytes.
    #[must_use]
    pub fn fill(mut self, width: usize, height: usize) -> Self {
        let sides = [self.width, self.height, width, height];
        assert!(!sides.contains(&0), "{}x{} pixels cannot fill {width}x{height}", self.width, self.height);
        assert!(self.is_whole(), "a picture holds 4 * width * height bytes");
        if (self.width, self.height) == (width, height) {
            return self;
        }
        let side = |pixels: usize| u32::try_from(pixels).unwrap_or(u32::MAX);
        // Colours of transparent pixels are arbitrary, and scaling would mix them into their neighbours.
        self.put_on_white();
        let image = RgbaImage::from_raw(side(self.width), side(self.height), self.rgba);
        let image = DynamicImage::from(image.expect("a picture holds 4 * width * height bytes"));
        // The picture is cropped before it is scaled: scaled whole, a thin picture would become as long as it is
        // thin.
        let (w, h) = (self.width as u64, self.height as u64);
        let part = |whole: u64, other: u64, [along, across]: [usize; 2]| {
            let kept = (u128::from(other) * along as u128 / across as u128).clamp(1, u128::from(whole));
            u32::try_from(kept).expect("a part of a side")
        };
        let (kept_w, kept_h) = (part(w, h, [width, height]), part(h, w, [height, width]));
        let (x, y) = ((side(self.width) - kept_w) / 2, (side(self.height) - kept_h) / 2);
        let cropped = image.crop_imm(x, y, kept_w, kept_h);
        let filled = cropped.resize_exact(side(width), side(height), FilterType::CatmullRom);
        Self { width, height, rgba: filled.into_rgba8().into_raw() }
    }

    /// Arranges pictures of one size in rows on a nearly square white sheet. A [`Sheet`] takes them one by one.
    ///
    /// # Panics
    /// If there are no pictures, if their sizes differ or are 0, if `rgba` does not have `4 * width * height` bytes, or if
    /// the memory does not suffice.
    #[must_use]
    pub fn sheet(pictures: &[Self]) -> Self {
        let first = pictures.first().expect("a sheet needs a picture");
        let mut sheet = Sheet::new(pictures.len(), first.width, first.height).expect("a sheet fits into memory");
        pictures.iter().for_each(|picture| sheet.place(picture));
        sheet.into_picture()
    }

    /// Whether the picture has one colour only: every channel is constant, up to invisible differences.
    pub fn is_flat(&self) -> bool {
        (0..3).all(|channel| {
            let values = || self.rgba.iter().skip(channel).step_by(4);
            let (least, most) = (values().min().unwrap_or(&0), values().max().unwrap_or(&0));
            most - least <= FLAT
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(width: usize, height: usize, pixel: [u8; 4]) -> Picture {
        Picture { width, height, rgba: pixel.repeat(width * height) }
    }

    #[test]
    fn white_is_drawn_anew_and_black_is_kept() {
        for (grey, value) in [(0, 0), (255, 255), (128, 128)] {
            assert_eq!(Mask::of(&plain(2, 1, [grey, grey, grey, 255])).values, [value; 2]);
        }
        assert_eq!(Mask::of(&plain(1, 1, [0, 0, 0, 0])).values, [255], "transparent is white, as in a file");
    }

    #[test]
    fn a_mask_is_as_bright_as_its_picture_looks() {
        for (colour, value) in [([255, 0, 0], 54), ([0, 255, 0], 182), ([0, 0, 255], 18), ([255, 255, 0], 236)] {
            let [r, g, b] = colour;
            assert_eq!(Mask::of(&plain(1, 1, [r, g, b, 255])).values, [value], "{colour:?}");
        }
    }

    /// Makes a picture of grey pixels.
    fn greys(width: usize, height: usize, grey: impl Fn(usize, usize) -> u8) -> Picture {
        let pixel = |at: usize| {
            let grey = grey(at % width, at / width);
            [grey, grey, grey, 255]
        };
        Picture { width, height, rgba: (0..width * height).flat_map(pixel).collect() }
    }

    #[test]
    fn a_checkerboard_shrinks_to_grey() {
        let board = greys(16, 16, |x, y| if (x + y) % 2 == 0 { 255 } else { 0 });
        let small = board.fill(8, 8);
        // Scaling reaches beyond the picture at its edges, so they are left out.
        for at in (0..64).filter(|at| (1..7).contains(&(at % 8)) && (1..7).contains(&(at / 8))) {
            assert!(small.rgba[4 * at].abs_diff(127) <= 1, "pixel {at} is {}", small.rgba[4 * at]);
        }
    }

    #[test]
    fn an_edge_is_enlarged_by_the_cubic_of_catmull_and_rom() {
        let large = greys(8, 1, |x, _| if x < 4 { 64 } else { 192 }).fill(16, 2);
        let row: Vec<u8> = large.rgba.iter().step_by(4).take(16).copied().collect();
        // The weights a quarter of a pixel beside a pixel are -9/128, 111/128, 29/128 and -3/128.
        for (at, expected) in [(2, 64), (5, 61), (6, 55), (7, 90), (8, 166), (9, 201), (10, 195), (13, 192)] {
            assert!(row[at].abs_diff(expected) <= 1, "pixel {at} is {}, expected {expected}: {row:?}", row[at]);
        }
    }

    #[test]
    fn filling_keeps_the_middle() {
        let mut wide = plain(6, 2, [0, 0, 0, 255]);
        for x in [2, 3, 8, 9] {
            wide.rgba[4 * x..4 * x + 4].fill(255);
        }
        assert_eq!(wide.clone().fill(6, 2), wide, "the same size is left alone");
        assert_eq!(wide.fill(2, 2), plain(2, 2, [255; 4]));
        let large = plain(1, 1, [9, 8, 7, 255]).fill(64, 32);
        assert_eq!((large.width, large.height, &large.rgba[..4]), (64, 32, &[9, 8, 7, 255][..]));
        // A line of pixels, which would be 64 times as long if it were scaled before it is cropped.
        for (width, height) in [(60_000_000, 1), (1, 60_000_000)] {
            assert_eq!(plain(width, height, [9, 8, 7, 255]).fill(64, 64), plain(64, 64, [9, 8, 7, 255]));
        }
    }

    #[test]
    fn transparent_pixels_are_scaled_as_white_ones() {
        let half = [[0; 4].repeat(8), [255; 4].repeat(8)].concat();
        let picture = Picture { width: 16, height: 16, rgba: half.repeat(16) };
        assert_eq!(picture.fill(8, 8), plain(8, 8, [255; 4]));
    }

    #[test]
    fn a_sheet_is_filled_row_by_row() {
        let pictures: Vec<Picture> = (0..5).map(|i| plain(2, 1, [i, i, i, 255])).collect();
        let sheet = Picture::sheet(&pictures);
        assert_eq!((sheet.width, sheet.height), (6, 2));
        let reds: Vec<u8> = sheet.rgba.iter().step_by(4).copied().collect();
        assert_eq!(reds, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 255, 255]);
    }

    #[test]
    fn one_colour_is_flat_and_one_pixel_of_another_is_not() {
        let mut picture = plain(8, 8, [100, 50, 200, 255]);
        assert!(picture.is_flat());
        picture.rgba[4] += FLAT;
        assert!(picture.is_flat(), "nobody sees that");
        picture.rgba[4] += 1;
        assert!(!picture.is_flat());
    }
}
