//! Reading of JSON files, with errors that name the file and the key.

use crate::error::ModelError;
use serde::de::DeserializeOwned;
use std::path::Path;

/// Reads and parses a JSON file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let text = std::fs::read_to_string(path).map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
    parse(path, &text)
}

/// Parses JSON. `path` only names the file in errors.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ModelError> {
    let json = |key: String, message: String| ModelError::Json { path: path.to_owned(), key, message };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|error| json(error.path().to_string(), error.inner().to_string()))?;
    deserializer.end().map_err(|error| json(".".to_owned(), error.to_string()))?;
    Ok(value)
}
