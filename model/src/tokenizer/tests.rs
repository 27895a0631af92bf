use super::*;

fn clip() -> Tokenizer {
    Tokenizer::clip().unwrap()
}

/// Returns the text's tokens among the ids, without marks.
fn tokens(encoded: &Encoded) -> &[u32] {
    encoded.ids[1..].split(|&id| id == EOS).next().unwrap()
}

#[test]
fn a_prompt_becomes_the_known_ids() {
    let encoded = clip().encode("a photo of a cat", 77).unwrap();
    assert_eq!(encoded.ids[..7], [BOS, 320, 1125, 539, 320, 2368, EOS]);
    assert!(encoded.ids.len() == 77 && encoded.ids[7..].iter().all(|&id| id == EOS), "padded with the end mark");
    assert_eq!((tokens(&encoded).len(), encoded.truncated), (5, None));
}

#[test]
fn an_empty_prompt_is_two_marks() {
    for text in ["", " ", "\n\t  "] {
        let encoded = clip().encode(text, 77).unwrap();
        assert_eq!((encoded.ids[0], tokens(&encoded), &encoded.truncated), (BOS, &[][..], &None), "{text:?}");
        assert!(encoded.ids[1..].iter().all(|&id| id == EOS), "{text:?}");
    }
}

#[test]
fn a_long_prompt_is_cut_and_says_what_was_cut() {
    let tokenizer = clip();
    let text = format!("{}Ende gut", "cat ".repeat(75));
    let encoded = tokenizer.encode(&text, 77).unwrap();
    assert_eq!((encoded.ids.len(), tokens(&encoded).len()), (77, 75));
    assert!(encoded.ids[1..76].iter().all(|&id| id == 2368) && encoded.ids[76] == EOS, "{encoded:?}");
    assert_eq!(encoded.truncated.as_deref(), Some("Ende gut"));

    // A text that fits exactly, and one that is cut inside a character of several tokens.
    assert_eq!(tokenizer.encode(&"cat ".repeat(75), 77).unwrap().truncated, None);
    let emoji = "🦩".repeat(100);
    let truncated = tokenizer.encode(&emoji, 77).unwrap().truncated.unwrap();
    assert!(emoji.ends_with(&truncated), "{truncated}");
}

#[test]
fn nothing_a_user_types_makes_it_panic() {
    let tokenizer = clip();
    let hostile = [
        "\0".to_owned(),
        "a\0b\u{1}\u{7f}\u{85}\u{200b}\u{feff}".to_owned(),
        "🧑‍🚀🏳️‍🌈👩🏽‍💻".to_owned(),
        "e\u{301}\u{301}\u{301} ﷽ \u{202e}abc".to_owned(),
        "word ".repeat(10_000),
        "a".repeat(100_000),
        "\u{10ffff}\u{e000}".repeat(1_000),
        "İSTANBUL ẞ ΣΑΣ".to_owned(),
        "'".repeat(1_000),
    ];
    for text in hostile {
        for len in [2, 3, 77] {
            let encoded = tokenizer.encode(&text, len).unwrap();
            assert!(encoded.ids.len() == len && encoded.ids[0] == BOS && encoded.ids[len - 1] == EOS, "{text:.20?}");
            assert!(encoded.ids.iter().all(|&id| (id as usize) < VOCABULARY), "{text:.20?}");
        }
    }
    for len in [0, 1] {
        assert!(matches!(tokenizer.encode("a", len), Err(ModelError::Tokenizer { .. })), "{len}");
    }
}

#[test]
fn marks_in_the_text_are_dropped() {
    let tokenizer = clip();
    let plain = tokenizer.encode("a cat on a mat", 77).unwrap();
    let marked = tokenizer.encode("a cat <|endoftext|> on <|startoftext|> a mat", 77).unwrap();
    assert_eq!(plain, marked);
}

/// Beginnings of prompts; with [`STYLES`] they make more than a hundred ordinary ones.
const SUBJECTS: [&str; 12] = [
    "a photo of a cat",
    "An Astronaut's horse",
    "they're two dogs that don't bark",
    "I'd say we've met: he'll run, I'm sure, it's fine",
    "A BLUE CUBE, 3D render, 4k, 1080p!!!",
    "naïve café façade, über-cool",
    "два кота на крыше",
    "一只猫坐在垫子上",
    "قطة على سجادة",
    "ねこがすき",
    "🐱 and 🐶 (friends)",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
];
/// Ends of prompts.
const STYLES: [&str; 10] = [
    "",
    ", trending on artstation",
    " in the style of Van Gogh...",
    " -- oil on canvas; c. 1890",
    " @ $19.99 & 50% off #sale",
    " \"quoted\" 'single' `code` <tag/>",
    "\twith\n\nodd   spacing ",
    " 🚀🌕✨ 👩🏽‍💻",
    " x²+y²=z², 10⁻³, ½, Ⅷ",
    " what's 'twas 'Tis o'clock rock'n'roll 's 't 're",
];

#[test]
fn it_agrees_with_an_independent_implementation() {
    let (ours, theirs) = (clip(), instant_clip_tokenizer::Tokenizer::new());
    let texts = SUBJECTS.iter().flat_map(|subject| STYLES.iter().map(move |style| format!("{subject}{style}")));
    let mut compared = 0;
    for text in texts {
        let mut found = Vec::new();
        theirs.encode(&text, &mut found);
        let want: Vec<u32> = found.into_iter().map(|token| token.to_u16().into()).collect();
        let encoded = ours.encode(&text, 500).unwrap();
        assert_eq!(tokens(&encoded), want, "{text}");
        compared += 1;
    }
    assert!(compared >= 100, "{compared} prompts");
}

#[test]
fn it_gives_the_ids_of_the_reference_tokenizer() {
    #[derive(serde::Deserialize)]
    struct Case {
        text: String,
        ids: Vec<u32>,
    }
    let cases: Vec<Case> = serde_json::from_str(include_str!("../../../tests/data/tokenizer.json")).unwrap();
    assert!(cases.len() >= 500, "{} texts", cases.len());
    let tokenizer = clip();
    for Case { text, ids } in &cases {
        let encoded = tokenizer.encode(text, ids.len()).unwrap();
        assert_eq!(&encoded.ids, ids, "{text:?}");
        // Twice the room shows whether something is missing.
        let whole = tokenizer.encode(text, 20_000).unwrap();
        assert_eq!(encoded.truncated.is_some(), tokens(&whole).len() > tokens(&encoded).len(), "{text:?}");
    }
}
