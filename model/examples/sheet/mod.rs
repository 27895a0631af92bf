//! Prompts of the contact sheet, shared by the examples that draw it.

/// Prompts in the order of the sheet.
pub(crate) const PROMPTS: [&str; 16] = [
    "red apple",
    "sun",
    "cat face",
    "pizza",
    "airplane",
    "guitar",
    "house with garden",
    "snowman",
    "blue whale",
    "birthday cake",
    "green frog",
    "umbrella",
    "rocket",
    "coffee cup",
    "rainbow",
    "soccer ball",
];
