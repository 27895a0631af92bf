//! Picture files: reads PNG, JPEG, GIF and WebP, and writes PNG with texts.

use super::Picture;
use crate::error::ModelError;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbaImage};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Seek};
use std::path::Path;

/// Largest number of pixels of a file that is read, 8192 x 8192: a few bytes can claim any size.
const MOST: u64 = 1 << 26;

/// Largest number of bytes that a decoder may use besides its result.
const DECODER_BYTES: u64 = 512 << 20;

/// Largest size of a file in bytes: the end of a JPEG file is searched for before it is decoded.
const FILE_BYTES: u64 = 512 << 20;

/// Largest number of bytes of all compressed texts of a file together: a few bytes can stand for any length.
const TEXT_BYTES: usize = 16 << 20;

/// Name of a picture without a file in errors.
const UNNAMED: &str = "the picture";

fn open(path: &Path) -> Result<BufReader<File>, ModelError> {
    let file = mobilediffusion_runtime::open_file(path).and_then(|file| Ok((file.metadata()?.len(), file)));
    match file.map_err(|error| ModelError::Io { path: path.to_owned(), error })? {
        (length, _) if length > FILE_BYTES => {
            Err(unreadable(path, format!("expected at most {FILE_BYTES} bytes, found {length}")))
        }
        (_, file) => Ok(BufReader::new(file)),
    }
}

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
    /// [`ModelError::Io`] if the file cannot be read, and [`ModelError::Picture`] if it has another format, is corrupt or
    /// cut off, has no pixels or more than 8192 x 8192, or is longer than 512 MiB or takes as much to decode.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Self::read(open(path)?, path)
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
        let reader = reader(from, path)?;
        let broken = |error| match error {
            ImageError::Limits(_) => {
                unreadable(path, format!("it needs more than {} to be decoded", crate::error::mib(DECODER_BYTES)))
            }
            error => unreadable(path, error),
        };
        let mut decoder = reader.into_decoder().map_err(broken)?;
        check_size(path, decoder.dimensions())?;
        let orientation = decoder.orientation().map_err(broken)?;
        let mut image = DynamicImage::from_decoder(decoder).map_err(broken)?;
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
        let refused = |why: &str| ModelError::Output { path: path.to_owned(), error: io::Error::other(why) };
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
        let output = |error| ModelError::Output { path: path.to_owned(), error };
        let bytes = self.encode(text).map_err(output)?;
        mobilediffusion_runtime::write_whole(path, &bytes).map_err(output)
    }

    /// Encodes the PNG file that [`save_png`](Self::save_png) writes, in memory.
    ///
    /// # Errors
    /// [`ModelError::Output`] if PNG does not allow a key.
    pub fn to_png(&self, text: &[(&str, String)]) -> Result<Vec<u8>, ModelError> {
        self.encode(text).map_err(|error| ModelError::Output { path: UNNAMED.into(), error })
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
    /// [`ModelError::Io`] if the file cannot be read, and [`ModelError::Picture`] if it is not a PNG file or is longer
    /// than 512 MiB, or its compressed texts are longer than 16 MiB.
    pub fn texts(path: &Path) -> Result<Vec<(String, String)>, ModelError> {
        let reader = png::Decoder::new(open(path)?).read_info();
        let reader = reader.map_err(|error| unreadable(path, format!("expected a whole PNG file: {error}")))?;
        let info = reader.info();
        let mut texts = Vec::new();
        for chunk in &info.uncompressed_latin1_text {
            texts.push((chunk.keyword.clone(), chunk.text.clone()));
        }
        let unread = |keyword: &str, error| {
            unreadable(path, format!("text `{keyword}`: expected a whole one, and at most 16 MiB in all: {error}"))
        };
        let mut left = TEXT_BYTES;
        for mut chunk in info.compressed_latin1_text.clone() {
            let text = chunk.decompress_text_with_limit(left).and_then(|()| chunk.get_text());
            let text = text.map_err(|error| unread(&chunk.keyword, error))?;
            left = left.saturating_sub(text.len());
            texts.push((chunk.keyword, text));
        }
        for mut chunk in info.utf8_text.clone() {
            let text = chunk.decompress_text_with_limit(left).and_then(|()| chunk.get_text());
            let text = text.map_err(|error| unread(&chunk.keyword, error))?;
            left = if chunk.compressed { left.saturating_sub(text.len()) } else { left };
            texts.push((chunk.keyword, text));
        }
        Ok(texts)
    }
}

/// Checks the width and height of a picture in a file.
fn check_size(path: &Path, (width, height): (u32, u32)) -> Result<(), ModelError> {
    if width == 0 || height == 0 {
        return Err(unreadable(path, format!("expected at least 1x1 pixels, found {width}x{height}")));
    }
    if u64::from(width) * u64::from(height) > MOST {
        return Err(unreadable(path, format!("expected at most {MOST} pixels, found {width}x{height}")));
    }
    Ok(())
}

/// Makes the reader of a picture of a format that is supported. `path` only names the file in errors.
fn reader<R: BufRead + Seek>(from: R, path: &Path) -> Result<ImageReader<R>, ModelError> {
    let unread = |error| ModelError::Io { path: path.to_owned(), error };
    let mut reader = ImageReader::new(from).with_guessed_format().map_err(unread)?;
    match reader.format() {
        Some(ImageFormat::Jpeg) => {
            let mut from = reader.into_inner();
            // The decoder fills what is missing of a file that was cut with grey.
            check_end(&mut from).map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => unreadable(path, "expected a whole JPEG file, its end is missing"),
                _ => unread(error),
            })?;
            reader = ImageReader::with_format(from, ImageFormat::Jpeg);
        }
        Some(ImageFormat::Png) => {
            let mut from = reader.into_inner();
            // The decoder has no room for a row of a very large picture, and does not say how large it is.
            let size = png::Decoder::new(&mut from).read_header_info().map(|info| info.size());
            size.map_or(Ok(()), |size| check_size(path, size))?;
            from.rewind().map_err(unread)?;
            reader = ImageReader::with_format(from, ImageFormat::Png);
        }
        Some(ImageFormat::Gif | ImageFormat::WebP) => {}
        _ => return Err(unreadable(path, "expected a PNG, JPEG, GIF or WebP file")),
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(DECODER_BYTES);
    reader.limits(limits);
    Ok(reader)
}

/// Reads the segments of a JPEG file up to the mark of its end, which must come after some pixels, and goes back to its
/// beginning. The error is `UnexpectedEof` if there is no such mark.
fn check_end(from: &mut (impl BufRead + Seek)) -> io::Result<()> {
    const END: u8 = 0xd9;
    const PIXELS: u8 = 0xda;
    let mut has_pixels = false;
    loop {
        from.skip_until(0xff)?;
        let mut kind = [0xff];
        while kind == [0xff] {
            from.read_exact(&mut kind)?;
        }
        match kind[0] {
            END if has_pixels => return from.rewind(),
            END => return Err(ErrorKind::UnexpectedEof.into()),
            // A value of the pixels, and marks that have no length.
            0x00 | 0x01 | 0xd0..=0xd8 => {}
            other => {
                has_pixels |= other == PIXELS;
                let mut length = [0; 2];
                from.read_exact(&mut length)?;
                from.seek_relative(i64::from(u16::from_be_bytes(length).saturating_sub(2)))?;
            }
        }
    }
}

/// Blends an image with white, which makes it opaque.
fn on_white(image: RgbaImage) -> Picture {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let mut picture = Picture { width, height, rgba: image.into_raw() };
    picture.put_on_white();
    picture
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
    fn a_picture_without_pixels_is_refused() {
        let folder = folder();
        let path = folder.path().join("z.gif");
        let gif = b"GIF89a\0\0\0\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x02\0\x02\0\0\x02\x03D4\x05\0;";
        fs::write(&path, gif).expect("the folder can be written to");
        let line = Picture::open(&path).expect_err("0x0").to_string();
        assert!(line.ends_with("z.gif: expected at least 1x1 pixels, found 0x0"), "{line}");
    }

    #[test]
    fn a_picture_that_is_too_large_is_refused_with_its_size() {
        for side in [8193, 0x7fff_ffff] {
            let mut bytes = Vec::new();
            png::Encoder::new(&mut bytes, side, side).write_header().map(drop).expect("it encodes");
            let line = Picture::decode(&bytes).expect_err("too large").to_string();
            assert_eq!(line, format!("the picture: expected at most 67108864 pixels, found {side}x{side}"));
        }
    }

    #[test]
    fn a_jpeg_file_that_was_cut_is_refused() {
        let pixels = image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([(4 * x) as u8, (x * y) as u8, (3 * y) as u8]));
        let mut whole = Vec::new();
        let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut whole, 90);
        pixels.write_with_encoder(encoder).expect("it encodes");
        Picture::decode(&whole).expect("it is whole");
        Picture::decode(&[&whole, &b"more"[..]].concat()).expect("some programs write something behind the picture");
        for length in 3..whole.len() {
            let line = Picture::decode(&whole[..length]).expect_err("it is cut").to_string();
            assert!(line.contains("its end is missing"), "{length} of {} bytes: {line}", whole.len());
        }
        let scan = whole.windows(2).position(|bytes| bytes == [0xff, 0xda]).expect("there are pixels");
        let without = [&whole[..scan], &[0xff, 0xd9]].concat();
        assert!(Picture::decode(&without).is_err(), "there are no pixels");
    }

    #[test]
    fn texts_that_would_fill_the_memory_are_refused() {
        let folder = folder();
        let path = folder.path().join("x.png");
        let write = |long: usize, count: usize| {
            let mut bytes = Vec::new();
            let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
            for _ in 0..count {
                encoder.add_ztxt_chunk("Comment".to_owned(), " ".repeat(long)).expect("it is a text");
            }
            let mut writer = encoder.write_header().expect("it encodes");
            writer.write_image_data(&[0]).expect("it encodes");
            writer.finish().expect("it encodes");
            fs::write(&path, bytes).expect("the folder can be written to");
        };
        write(1 << 20, 2);
        assert_eq!(Picture::texts(&path).expect("it reads").len(), 2);
        for (long, count) in [(TEXT_BYTES + 1, 1), (6 << 20, 3)] {
            write(long, count);
            let line = Picture::texts(&path).expect_err("too long").to_string();
            assert!(line.contains("x.png: text `Comment`: expected a whole one, and at most 16 MiB in all"), "{line}");
        }
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
        for bytes in [&b"BM1234"[..], b"II*\0more"] {
            let line = Picture::decode(bytes).expect_err("no such format").to_string();
            assert_eq!(line, "the picture: expected a PNG, JPEG, GIF or WebP file");
        }
        for bytes in [&b""[..], b"<svg/>", &whole[..20], &whole[..whole.len() / 2]] {
            fs::write(&path, bytes).expect("the folder can be written to");
            let line = Picture::open(&path).expect_err("it is broken").to_string();
            assert!(line.contains("x.png") && line.lines().count() == 1, "{line}");
            assert!(Picture::texts(&path).is_err() || bytes.len() > 40, "{} bytes", bytes.len());
        }
        assert!(Picture::open(&folder.path().join("missing.png")).is_err());
        #[cfg(unix)]
        {
            File::create(&path).and_then(|file| file.set_len(FILE_BYTES + 1)).expect("the file has holes");
            let line = Picture::open(&path).expect_err("it is too long").to_string();
            assert!(line.ends_with("x.png: expected at most 536870912 bytes, found 536870913"), "{line}");
        }
    }
}
