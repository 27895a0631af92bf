//! What the examples that draw the contact sheet share.

/// The prompts of the sheet, in its order.
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
