//! CLIP's byte-pair tokenizer: converts a text to the token ids that the text encoder reads.
//!
//! The vocabulary is that of `openai/clip-vit-large-patch14`, built into the program.

use crate::error::ModelError;
use std::fmt;

/// Id of the begin mark, the first id of every encoding.
pub(crate) const BOS: u32 = 49406;
/// Id of the end mark, which follows the last token and fills the remaining positions.
pub(crate) const EOS: u32 = 49407;
/// Size of the vocabulary: every id is smaller, and a text encoder needs at least as many rows.
pub(crate) const VOCABULARY: usize = 49408;

/// Encoded text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Begin mark, tokens, end mark and further end marks: exactly as many ids as asked for.
    pub ids: Vec<u32>,
    /// End of the text that did not fit, as it was written; `None` if all of it fits.
    pub truncated: Option<String>,
}

/// CLIP's tokenizer for lower-cased byte pairs.
pub struct Tokenizer(tokenizers::Tokenizer);

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokenizer(CLIP)")
    }
}

impl Tokenizer {
    /// Builds the tokenizer from the built-in vocabulary. This takes tens of milliseconds, so keep the tokenizer.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if the built-in vocabulary cannot be read, which is a defect of the build.
    pub fn clip() -> Result<Self, ModelError> {
        let json = include_bytes!("../data/clip/tokenizer.json");
        let tokenizer = tokenizers::Tokenizer::from_bytes(json).map_err(failed)?;
        Ok(Self(tokenizer))
    }

    /// Encodes `text` into exactly `max_len` ids (77 for CLIP) and cuts off what does not fit between the two marks.
    ///
    /// Marks that are written out in the text (`<|endoftext|>`) are dropped, so that a prompt cannot end itself
    /// early.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if `max_len` is below 2, or if the text cannot be tokenized.
    pub fn encode(&self, text: &str, max_len: usize) -> Result<Encoded, ModelError> {
        let Some(room) = max_len.checked_sub(2) else {
            return Err(ModelError::Tokenizer {
                message: format!("number of ids: expected at least 2, found {max_len}"),
            });
        };
        let encoding = self.0.encode(text, false).map_err(failed)?;
        let mut tokens =
            encoding.get_ids().iter().zip(encoding.get_offsets()).filter(|(id, _)| ![BOS, EOS].contains(id));

        let mut ids = vec![BOS];
        ids.extend(tokens.by_ref().take(room).map(|(id, _)| id));
        ids.resize(max_len, EOS);
        let truncated = tokens.next().map(|(_, &(start, _))| text[text.floor_char_boundary(start)..].to_owned());
        Ok(Encoded { ids, truncated })
    }
}

fn failed(source: tokenizers::Error) -> ModelError {
    ModelError::Tokenizer { message: source.to_string() }
}

#[cfg(test)]
mod tests;
