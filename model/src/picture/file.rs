//! Picture files: reads PNG, JPEG, GIF and WebP, and writes PNG with texts.

use super::{Picture, over_white};
use crate::error::ModelError;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbaImage};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Seek};
use std::path::Path;

/// Largest number of pixels of a file that is read, 8192 x 8192: a few bytes can claim any size.
const MOST: u64 = 1 << 26;

/// Largest number of bytes that a decoder may use besides its result.
const DECODER_BYTES: u64 = 512 << 20;

/// Name of a picture without a file in errors.
const UNNAMED: &str = "the picture";

fn unreadable(path: &Path, message: impl ToString) -> ModelError {
    ModelError::Picture { path: path.to_owned(), message: message.to_string() }
}

impl Picture {
    /// Reads a PNG, JPEG (also CMYK), GIF or WebP file, whatever the file's name.
    ///
    /// The picture is rotated as its metadata says, and transparent pixels are blended with white. Of an animation,
    /// the first frame is read.
    ///
    /// # Errors
    /// [`ModelError::Io`] if the file cannot be read, and [`ModelError::Picture`] if it has another format, is
    /// corrupt, or has more than 8192 x 8192 pixels.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = File::open(path).map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
        Self::read(BufReader::new(file), path)
    }

    /// Decodes a file's bytes in memory, like [`open`](Self::open).
    ///
    /// # Errors
    /// [`ModelError::Picture`] in the cases of [`open`](Self::open).
    pub fn decode(bytes: &[u8]) -> Result<Self, ModelError> {
        Self::read(Cursor::new(bytes), Path::new(UNNAMED))
    }

    /// Decodes a picture. `path` only names the file in errors.
    fn read(from: impl BufRead + Seek, path: &Path) -> Result<Self, ModelError> {
        let reader = ImageReader::new(from).with_guessed_format();
        let mut reader = reader.map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
        if reader.format().is_none() {
            return Err(unreadable(path, "expected a PNG, JPEG, GIF or WebP file"));
        }
        let mut limits = Limits::default();
        limits.max_alloc = Some(DECODER_BYTES);
        reader.limits(limits);
        let mut decoder = reader.into_decoder().map_err(|error| unreadable(path, error))?;
        let (width, height) = decoder.dimensions();
        if u64::from(width) * u64::from(height) > MOST {
            return Err(unreadable(path, format!("expected at most {MOST} pixels, found {width}x{height}")));
        }
        let orientation = decoder.orientation().map_err(|error| unreadable(path, error))?;
        let mut image = DynamicImage::from_decoder(decoder).map_err(|error| unreadable(path, error))?;
        image.apply_orientation(orientation);
        Ok(on_white(image.into_rgba8()))
    }

    /// Checks that a picture may be written to `path`: a regular file or nothing must be there.
    ///
    /// A file is replaced and not written into, so replacing a link would break it, and replacing a device would
    /// remove it.
    ///
    /// # Errors
    /// [`ModelError::Output`] if `path` is a folder, link, pipe or device.
    pub fn check_place(path: &Path) -> Result<(), ModelError> {
        let refused = |why: &str| ModelError::Output { path: path.to_owned(), source: io::Error::other(why) };
        match path.symlink_metadata() {
            Ok(_) if path.is_dir() => Err(refused("it is a folder")),
            Ok(found) if !found.is_file() => Err(refused("expected a file or nothing, found a link, pipe or device")),
            _ => Ok(()),
        }
    }

    /// Writes a PNG file with `text` chunks of keys and values. The file appears whole or not at all: it is written
    /// under another name and renamed.
    ///
    /// # Errors
    /// [`ModelError::Output`] in the cases of [`check_place`](Self::check_place), if PNG does not allow a key, or if
    /// the folder cannot be written to.
    pub fn save_png(&self, path: &Path, text: &[(&str, String)]) -> Result<(), ModelError> {
        Self::check_place(path)?;
        let output = |source| ModelError::Output { path: path.to_owned(), source };
        let bytes = self.encode(text).map_err(output)?;
        mobilediffusion_runtime::write_whole(path, &bytes).map_err(output)
    }

    /// Encodes the PNG file that [`save_png`](Self::save_png) writes, in memory.
    ///
    /// # Errors
    /// [`ModelError::Output`] if PNG does not allow a key.
    pub fn to_png(&self, text: &[(&str, String)]) -> Result<Vec<u8>, ModelError> {
        self.encode(text).map_err(|source| ModelError::Output { path: UNNAMED.into(), source })
    }

    /// Encodes the picture and its texts as PNG.
    fn encode(&self, text: &[(&str, String)]) -> io::Result<Vec<u8>> {
        let side = |pixels: usize| u32::try_from(pixels).map_err(io::Error::other);
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, side(self.width)?, side(self.height)?);
        encoder.set_color(png::ColorType::Rgba);
        encoder.set_depth(png::BitDepth::Eight);
        for (key, value) in text {
            // PNG texts cannot hold NUL.
            let value = value.replace('\0', "\u{fffd}");
            encoder.add_itxt_chunk((*key).to_owned(), value).map_err(io::Error::other)?;
        }
        let mut writer = encoder.write_header().map_err(io::Error::other)?;
        writer.write_image_data(&self.rgba).map_err(io::Error::other)?;
        writer.finish().map_err(io::Error::other)?;
        Ok(bytes)
    }

    /// Reads the texts of a PNG file that precede its pixels, as keys and values.
    ///
    /// # Errors
    /// [`ModelError::Io`] if the file cannot be read, and [`ModelError::Picture`] if it is not a PNG file.
    pub fn texts(path: &Path) -> Result<Vec<(String, String)>, ModelError> {
        let file = File::open(path).map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
        let reader = png::Decoder::new(BufReader::new(file)).read_info();
        let reader = reader.map_err(|error| unreadable(path, format!("expected a whole PNG file: {error}")))?;
        let info = reader.info();
        let mut texts = Vec::new();
        for chunk in &info.uncompressed_latin1_text {
            texts.push((chunk.keyword.clone(), chunk.text.clone()));
        }
        for chunk in &info.compressed_latin1_text {
            texts.push((chunk.keyword.clone(), chunk.get_text().map_err(|error| unreadable(path, error))?));
        }
        for chunk in &info.utf8_text {
            texts.push((chunk.keyword.clone(), chunk.get_text().map_err(|error| unreadable(path, error))?));
        }
        Ok(texts)
    }
}

/// Blends an image with white, which makes it opaque.
fn on_white(image: RgbaImage) -> Picture {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let mut rgba = image.into_raw();
    for pixel in rgba.as_chunks_mut::<4>().0 {
        let [r, g, b] = over_white(*pixel);
        *pixel = [r, g, b, 255];
    }
    Picture { width, height, rgba }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    #[test]
    fn pixels_and_texts_come_back() {
        let folder = folder();
        let path = folder.path().join("x.png");
        let rgba = (0..24).flat_map(|i| [10 * i, 255 - i, i, 255]).collect();
        let picture = Picture { width: 6, height: 4, rgba };
        let texts = [("Description", "\u{1f34e} a\0b \u{5d0}".to_owned()), ("Seed", "7".to_owned())];
        picture.save_png(&path, &texts).expect("the folder can be written to");
        assert_eq!(Picture::open(&path).expect("it reads"), picture);
        let bytes = fs::read(&path).expect("it reads");
        assert_eq!(picture.to_png(&texts).expect("it is encoded"), bytes, "the same without a file");
        assert_eq!(Picture::decode(&bytes).expect("it reads"), picture);
        let line = Picture::decode(&bytes[..40]).expect_err("most is missing").to_string();
        assert!(line.starts_with("the picture: "), "{line}");
        // The longest name that common file systems allow.
        let long = folder.path().join("x".repeat(251) + ".png");
        picture.save_png(&long, &texts).expect("nothing is added to the name");
        let found = Picture::texts(&path).expect("it reads");
        assert_eq!(found[0], ("Description".into(), "\u{1f34e} a\u{fffd}b \u{5d0}".into()));
        assert_eq!(found[1], ("Seed".into(), "7".into()));
    }

    /// Returns a JPEG file of a black pixel left of a white one, which says how it is to be rotated.
    fn black_and_white(orientation: u8) -> Vec<u8> {
        let mut jpeg = Vec::new();
        let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 100);
        let pixels = image::GrayImage::from_raw(2, 1, vec![0, 255]).expect("two pixels");
        pixels.write_with_encoder(encoder).expect("it encodes");
        // A segment with one field, 0x0112, of one 16-bit number in the order of big endian.
        let mut exif = b"\xff\xe1\x00\x22Exif\0\0MM\x00\x2a\x00\x00\x00\x08\x00\x01".to_vec();
        exif.extend([0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0, 0, 0, 0, 0]);
        // It comes behind the two bytes that begin every JPEG file.
        jpeg.splice(2..2, exif);
        jpeg
    }

    #[test]
    fn a_picture_is_rotated_as_its_metadata_says() {
        for (orientation, size, dark) in [(1, (2, 1), true), (3, (2, 1), false), (6, (1, 2), true), (8, (1, 2), false)]
        {
            let picture = Picture::decode(&black_and_white(orientation)).expect("it reads");
            assert_eq!((picture.width, picture.height), size, "orientation {orientation}");
            let [first, last] = [picture.rgba[0], picture.rgba[4]];
            assert!(
                if dark { first < 30 && last > 225 } else { first > 225 && last < 30 },
                "{orientation}: {first}, {last}"
            );
        }
    }

    #[test]
    fn transparent_is_white() {
        let picture = on_white(RgbaImage::from_raw(3, 1, vec![9, 9, 9, 0, 0, 0, 0, 128, 1, 2, 3, 255]).expect("3x1"));
        assert_eq!(picture.rgba, [255, 255, 255, 255, 127, 127, 127, 255, 1, 2, 3, 255]);
    }

    #[test]
    fn what_is_no_picture_is_named() {
        let folder = folder();
        let path = folder.path().join("x.png");
        let whole = {
            let picture = Picture { width: 8, height: 8, rgba: (0..=255).collect() };
            picture.save_png(&path, &[]).expect("the folder can be written to");
            fs::read(&path).expect("it reads")
        };
        for bytes in [&b""[..], b"<svg/>", &whole[..20], &whole[..whole.len() / 2]] {
            fs::write(&path, bytes).expect("the folder can be written to");
            let line = Picture::open(&path).expect_err("it is broken").to_string();
            assert!(line.contains("x.png") && line.lines().count() == 1, "{line}");
            assert!(Picture::texts(&path).is_err() || bytes.len() > 40, "{} bytes", bytes.len());
        }
        assert!(Picture::open(&folder.path().join("missing.png")).is_err());
    }
}
