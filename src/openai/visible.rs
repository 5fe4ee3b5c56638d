//! Whether a reader sees anything of a text.

/// Whether the character is drawn as nothing: a control character, or one that Unicode says to
/// leave out where it has no effect (`Default_Ignorable_Code_Point` in `DerivedCoreProperties.txt`
/// of Unicode 16), such as joiners, marks of direction and of the byte order, fillers and tags.
pub fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(u32::from(c),
            0xAD | 0x34F | 0x61C | 0x115F..=0x1160 | 0x17B4..=0x17B5 | 0x180B..=0x180F
            | 0x200B..=0x200F | 0x202A..=0x202E | 0x2060..=0x206F | 0x3164 | 0xFE00..=0xFE0F
            | 0xFEFF | 0xFFA0 | 0xFFF0..=0xFFF8 | 0x1BCA0..=0x1BCA3 | 0x1D173..=0x1D17A
            | 0xE0000..=0xE0FFF)
}

/// Whether a reader of the text sees nothing: spaces, the blank Braille pattern, and characters
/// that are [invisible](is_invisible).
pub fn is_blank(text: &str) -> bool {
    text.chars().all(|c| c.is_whitespace() || c == '\u{2800}' || is_invisible(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_sees_is_blank() {
        for text in [
            "",
            " \r\n\t",
            "\u{200b}",
            "\u{feff}\u{2060} ",
            "\u{a0}\u{3000}",
            "\0\u{7f}\u{85}",
            "\u{ad}",
            "\u{2800}",
            "\u{3164}",
            "\u{e0041}\u{e007f}",
            "\u{fe0f}",
            "\u{202e}",
        ] {
            assert!(is_blank(text), "{text:?}");
        }
        for text in ["0", ".", "\u{200b}a", "é", "\u{fffd}", "👩\u{200d}💻", "\u{301}", "\u{2028}x"]
        {
            assert!(!is_blank(text), "{text:?}");
        }
    }
}
