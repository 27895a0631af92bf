//! Reading of JSON files, with errors that name the file and the key, and what was expected and found there.

use crate::error::{ModelError, shortened};
use mobilediffusion_kernels::casefile::json;
use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Error as _, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Value};
use std::path::Path;

/// Largest size of a configuration file in bytes, far above that of any.
const MOST_BYTES: u64 = 16 << 20;

/// Reads and parses a JSON file of at most 16 MiB.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    read_within(path, MOST_BYTES)
}

/// Reads and parses a JSON file of at most `most` bytes.
pub(crate) fn read_within<T: DeserializeOwned>(path: &Path, most: u64) -> Result<T, ModelError> {
    parse(path, &read_text(path, most)?)
}

/// Reads a text file of at most `most` bytes.
fn read_text(path: &Path, most: u64) -> Result<String, ModelError> {
    let bytes = mobilediffusion_runtime::read_file(path, most);
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).map_err(std::io::Error::other));
    text.map_err(|error| ModelError::Io { path: path.to_owned(), error })
}

/// Parses JSON. `path` only names the file in errors.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ModelError> {
    let wrong = |key: String, message: String| ModelError::Json { path: path.to_owned(), key, message };
    let whole = |message: String| wrong(".".to_owned(), message);
    // Some editors begin a file with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim().is_empty() {
        return Err(whole("expected an object, found an empty file".to_owned()));
    }
    let value = json::parse(text).map_err(|error| whole(error.to_string()))?;
    serde_path_to_error::deserialize(Plain(value))
        .map_err(|error| wrong(shortened(&error.path().to_string()), error.inner().to_string()))
}

/// JSON value that is read more strictly than by serde_json: a list does not stand for an object. What does not fit is
/// named in plain words, and shortened. Enumerations are those of names only.
pub(crate) struct Plain(pub(crate) Value);

impl Plain {
    /// Requires a kind of value.
    fn require(self, fits: bool, expected: &str) -> Result<Self, Error> {
        if fits {
            return Ok(self);
        }
        Err(Error::custom(format!("expected {expected}, found {}", shortened(&self.0.to_string()))))
    }
}

/// Implements methods of [`Deserializer`] that require a kind of value.
macro_rules! require {
    ($($method:ident: $fits:ident, $expected:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let fits = self.0.$fits();
            self.require(fits, $expected)?.deserialize_any(visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for Plain {
    type Error = Error;

    require! {
        deserialize_bool: is_boolean, "true or false";
        deserialize_u64: is_u64, "a whole number of 0 or more";
        deserialize_f32: is_number, "a number";
        deserialize_f64: is_number, "a number";
        deserialize_str: is_string, "a text";
        deserialize_string: is_string, "a text";
        deserialize_seq: is_array, "a list";
        deserialize_map: is_object, "an object";
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => {
                let mut items = SeqDeserializer::new(items.into_iter().map(Self));
                let read = visitor.visit_seq(&mut items)?;
                items.end().map(|()| read)
            }
            Value::Object(entries) => {
                visitor.visit_map(MapDeserializer::new(entries.into_iter().map(|(key, value)| (key, Self(value)))))
            }
            simple => simple.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let Value::Object(entries) = self.0 else { return self.deserialize_map(visitor) };
        // A key that is cut is an unknown one, as it was before.
        let entries = entries.into_iter().map(|(key, value)| (shortened(&key), Self(value)));
        visitor.visit_map(MapDeserializer::new(entries))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let fits = self.0.as_str().is_some_and(|name| names.contains(&name));
        self.require(fits, &names.join(" or "))?.0.deserialize_enum(name, names, visitor)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u128 char bytes byte_buf unit unit_struct tuple tuple_struct identifier
        ignored_any
    }
}

impl IntoDeserializer<'_, Error> for Plain {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SchedulerConfig, UnetConfig};
    use crate::{ModelConfig, Source};

    /// Returns the line of the error for a file of the bundled model with a part of its text replaced.
    fn refused<T: DeserializeOwned>(file: &str, from: &str, to: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints/mini").join(file);
        let text = read_text(&path, MOST_BYTES).expect("it reads");
        assert!(text.contains(from), "{from} is not in {file}");
        match parse::<T>(Path::new(file), &text.replacen(from, to, 1)) {
            Ok(_) => panic!("{to} is accepted in {file}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_does_not_fit_is_named_in_plain_words() {
        let scheduler = |from, to| refused::<SchedulerConfig>("scheduler/config.json", from, to);
        for (from, to, line) in [
            ("1000", "-1", "num_train_timesteps: expected a whole number of 0 or more, found -1"),
            ("1000", "\"x\"", "num_train_timesteps: expected a whole number of 0 or more, found \"x\""),
            ("\"scaled_linear\"", "[1, 2]", "beta_schedule: expected a text, found [1,2]"),
        ] {
            assert_eq!(scheduler(from, to), format!("scheduler/config.json: {line}"));
        }
        for (whole, line) in [
            ("[1000, 0.1, 0.2, \"scaled_linear\", \"epsilon\"]", "expected an object, found [1000,0.1,0.2,"),
            ("null", "expected an object, found null"),
            ("\n ", "expected an object, found an empty file"),
            ("{} {}", "trailing characters at line 1 column 4"),
            ("{\"beta_end\": 1,\n\"beta_end\": 1}", "the key `beta_end` is there twice at line 2"),
            ("{}", "missing field `num_train_timesteps`"),
        ] {
            let error = parse::<SchedulerConfig>(Path::new("x.json"), whole).expect_err(whole).to_string();
            assert!(error.starts_with(&format!("x.json: {line}")), "{whole}: {error}");
        }
        let unet = |from, to| refused::<UnetConfig>("unet/config.json", from, to);
        for (from, to, line) in [
            ("\"MobileDiffusionUNet\"", "5", "_class_name: expected a text, found 5"),
            ("\"sample_size\"", "\"sample_size\": 1, \"sample_size\"", "the key `sample_size` is there twice at line"),
        ] {
            assert!(unet(from, to).starts_with(&format!("unet/config.json: {line}")), "{}", unet(from, to));
        }
        let error = parse::<UnetConfig>(Path::new("x.json"), "[]").expect_err("it is a list").to_string();
        assert_eq!(error, "x.json: expected an object, found []");
    }

    #[test]
    fn parts_of_a_file_are_objects_too() {
        let config = ModelConfig::preset("mobilediffusion").expect("there is a preset");
        let with = |pointer: &str, part: Value| {
            let mut value = serde_json::to_value(&config).expect("it is written");
            *value.pointer_mut(pointer).expect("it is there") = part;
            parse::<ModelConfig>(Path::new("x.json"), &value.to_string()).expect_err("it does not fit").to_string()
        };
        for (pointer, part, line) in [
            ("/model/ddim", serde_json::json!([20, 3.0]), "model.ddim: expected an object, found [20,3.0]"),
            (
                "/unet/self_attention",
                serde_json::json!([true, true, true]),
                "unet: self_attention: expected an object, found [true,true,true]",
            ),
            (
                "/unet/self_attention/mid",
                serde_json::json!(1),
                "unet: self_attention.mid: expected true, false or a list of them",
            ),
            ("/model/sampler", serde_json::json!("euler"), "model.sampler: expected ddim or one_step, found \"euler\""),
        ] {
            assert_eq!(with(pointer, part), format!("x.json: {line}"));
        }
    }

    #[test]
    fn values_and_keys_of_any_length_are_cut() {
        let long = "x".repeat(1 << 20);
        for (from, to) in [("1000", format!("\"{long}\"")), ("beta_end", long.clone())] {
            let error = refused::<SchedulerConfig>("scheduler/config.json", from, &to);
            assert!(error.len() < 400 && error.contains("xxx..."), "{} bytes: {error:.1000}", error.len());
        }
        let mut config = Source::bundled().expect("it is there").config;
        config.scheduler.beta_schedule = long;
        let error = config.validate().expect_err("there is no such schedule").to_string();
        assert!(error.len() < 400 && error.contains("xxx..."), "{} bytes: {error:.1000}", error.len());
    }

    #[test]
    fn a_byte_order_mark_is_passed_over() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints/mini/scheduler/config.json");
        let text = read_text(&path, MOST_BYTES).expect("it reads");
        let [plain, marked] =
            [text.clone(), format!("\u{feff}{text}")].map(|text| parse::<SchedulerConfig>(&path, &text));
        assert_eq!(plain.expect("it is valid"), marked.expect("it is valid"));
    }

    #[test]
    fn a_file_that_is_too_long_is_not_read() {
        let folder = tempfile::tempdir().expect("there is room");
        let path = folder.path().join("x.json");
        let file = std::fs::File::create(&path).expect("it is made");
        file.set_len(MOST_BYTES + 1).expect("it grows");
        let error = read::<SchedulerConfig>(&path).expect_err("it is too long").to_string();
        assert!(error.ends_with("x.json: expected at most 16777216 bytes, found 16777217"), "{error}");
    }

    #[test]
    #[cfg(unix)]
    fn a_device_is_no_file() {
        let error = read::<SchedulerConfig>(Path::new("/dev/zero")).expect_err("it has no end").to_string();
        assert_eq!(error, "cannot read /dev/zero: expected a file, found a folder, pipe or device");
    }
}
