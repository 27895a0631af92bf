//! CLIP's byte-pair tokenizer: a text becomes the token ids the text encoder reads.
//!
//! The vocabulary is that of `openai/clip-vit-large-patch14`, built into the program.

use crate::error::ModelError;
use std::fmt;

/// Begin mark, the first id of every encoding.
pub const BOS: u32 = 49406;
/// End mark, behind the last token and in all the room that is left.
pub const EOS: u32 = 49407;
/// Ids are below this: the least vocabulary a text encoder needs.
pub const VOCABULARY: usize = 49408;

/// An encoded text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Begin mark, tokens, end mark, more end marks: exactly as many ids as asked for.
    pub ids: Vec<u32>,
    /// Tokens of the text among them, without marks.
    pub kept: usize,
    /// The end of the text that did not fit, as it was written: worth a warning.
    pub truncated: Option<String>,
}

/// CLIP's tokenizer: lower-cased byte pairs.
pub struct Tokenizer(tokenizers::Tokenizer);

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokenizer(CLIP)")
    }
}

impl Tokenizer {
    /// The built-in tokenizer. Reads the vocabulary anew (tens of milliseconds), so keep it.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if the built-in vocabulary cannot be read: a defect of the build.
    pub fn clip() -> Result<Self, ModelError> {
        let json = include_bytes!("../data/clip/tokenizer.json");
        let tokenizer = tokenizers::Tokenizer::from_bytes(json).map_err(failed)?;
        Ok(Self(tokenizer))
    }

    /// Encodes `text` into exactly `max_len` ids (77 for CLIP): what does not fit between the two marks is cut off.
    /// Marks written out in the text (`<|endoftext|>`) are dropped, so that a prompt cannot end itself early.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if `max_len` has no room for the two marks, or if the text cannot be split.
    pub fn encode(&self, text: &str, max_len: usize) -> Result<Encoded, ModelError> {
        let Some(room) = max_len.checked_sub(2) else {
            return Err(ModelError::Tokenizer { message: format!("length: expected at least 2, found {max_len}") });
        };
        let encoding = self.0.encode(text, false).map_err(failed)?;
        let mut tokens =
            encoding.get_ids().iter().zip(encoding.get_offsets()).filter(|(id, _)| ![BOS, EOS].contains(id));

        let mut ids = vec![BOS];
        ids.extend(tokens.by_ref().take(room).map(|(id, _)| id));
        let kept = ids.len() - 1;
        ids.resize(max_len, EOS);
        let truncated = tokens.next().map(|(_, &(start, _))| text[text.floor_char_boundary(start)..].to_owned());
        Ok(Encoded { ids, kept, truncated })
    }
}

fn failed(source: tokenizers::Error) -> ModelError {
    ModelError::Tokenizer { message: source.to_string() }
}

#[cfg(test)]
mod tests;
