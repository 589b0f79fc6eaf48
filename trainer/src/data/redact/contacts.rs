//! How people and machines are reached: e-mail, telephone, IP addresses.

use std::net::{Ipv4Addr, Ipv6Addr};

use regex::Regex;

use super::{Found, PiiKind, is_inside_number, is_inside_word};

/// Digits of a telephone number with the country's (E.164 allows 15).
const PHONE_DIGITS: std::ops::RangeInclusive<usize> = 8..=15;
/// Endings of file names, which stand where an address has its domain: `icon@2x.png`.
const FILE_ENDINGS: &[&str] = &[
    "png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "css", "js", "ts", "json", "html", "md",
    "py", "rs",
];
/// What stands before numbers of four parts that are no addresses.
const VERSION_WORDS: &[&str] = &[
    "version", "release", "build", "v", "ver.", "==", "chapter", "section", "sec.", "§", "fig.",
    "table",
];
/// Country calling codes that are in use, by ITU-T E.164; the first digits decide. 1 and 7 stand alone.
const CALLING_CODES: &[&str] = &[
    "1", "7", "20", "21", "22", "23", "24", "25", "26", "27", "29", "30", "31", "32", "33", "34",
    "35", "36", "37", "38", "39", "40", "41", "42", "43", "44", "45", "46", "47", "48", "49", "50",
    "51", "52", "53", "54", "55", "56", "57", "58", "59", "60", "61", "62", "63", "64", "65", "66",
    "67", "68", "69", "80", "81", "82", "84", "85", "86", "87", "88", "90", "91", "92", "93", "94",
    "95", "96", "97", "98", "99",
];

#[derive(Debug)]
pub(super) struct Contacts {
    email: Regex,
    international: Regex,
    north_american: Regex,
    announced: Regex,
    ipv4: Regex,
    ipv6: Regex,
}

impl Contacts {
    pub(super) fn new() -> Result<Self, regex::Error> {
        Ok(Self {
            email: Regex::new(
                r"(?-u:[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,6}[A-Za-z]{2,24})",
            )?,
            international: Regex::new(r"(?-u:(?:\+|\b00)[1-9](?:[ .()/-]{0,2}[0-9]){7,14})")?,
            north_american: Regex::new(
                r"(?-u:(?:\([2-9][0-9]{2}\) ?|\b[2-9][0-9]{2}[-.])[2-9][0-9]{2}[-.][0-9]{4})",
            )?,
            announced: Regex::new(
                r"(?i)\b(?:tel|phone|mobile|cell|fax|call|text|whatsapp|telefon|handy|tél)(?:ephone|éphone)?(?: number| no)?\.?:? ?(?:(?:me|us|is|at|on) ){0,2}((?-u:[0(][0-9](?:[ .()/-]{0,2}[0-9]){5,13}))",
            )?,
            ipv4: Regex::new(r"(?-u:[0-9]{1,3}(?:\.[0-9]{1,3}){3})")?,
            ipv6: Regex::new(r"(?-u:\b[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7})")?,
        })
    }

    pub(super) fn find(&self, text: &str, found: &mut Vec<Found>) {
        let mut add = |start: usize, end: usize, kind| found.push(Found { start, end, kind });
        for at in self.email.find_iter(text) {
            if is_email(text, at.start(), at.end()) {
                add(at.start(), at.end(), PiiKind::Email);
            }
        }
        for at in self.international.find_iter(text) {
            if is_international(text, at.start(), at.end()) {
                add(at.start(), at.end(), PiiKind::Phone);
            }
        }
        for at in self.north_american.find_iter(text) {
            if !is_inside_word(text, at.start(), at.end())
                && !is_inside_number(text, at.start(), at.end())
            {
                add(at.start(), at.end(), PiiKind::Phone);
            }
        }
        for at in self.announced.captures_iter(text).filter_map(|captures| captures.get(1)) {
            if !is_inside_word(text, at.start(), at.end()) {
                add(at.start(), at.end(), PiiKind::Phone);
            }
        }
        for at in self.ipv4.find_iter(text) {
            if is_public_ipv4(text, at.start(), at.end()) {
                add(at.start(), at.end(), PiiKind::Ip);
            }
        }
        for at in self.ipv6.find_iter(text) {
            let address = at.as_str().trim_end_matches(':');
            let documentation = address.to_ascii_lowercase().starts_with("2001:db8");
            if address.parse::<Ipv6Addr>().is_ok()
                && !documentation
                && !is_inside_word(text, at.start(), at.end())
            {
                add(at.start(), at.start() + address.len(), PiiKind::Ip);
            }
        }
    }
}

fn is_email(text: &str, start: usize, end: usize) -> bool {
    let address = &text[start..end];
    let Some((name, domain)) = address.split_once('@') else { return false };
    let ending = domain.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    // The user of a repository's address: `git@host:path`.
    let repository = name == "git" && text.as_bytes().get(end) == Some(&b':');
    let hyphens = |label: &str| label.starts_with('-') || label.ends_with('-');
    !repository
        && !FILE_ENDINGS.contains(&ending.as_str())
        && !is_inside_word(text, start, end)
        && !domain.split('.').any(hyphens)
}

fn is_international(text: &str, start: usize, end: usize) -> bool {
    let number = &text[start..end];
    let digits: String = number.chars().filter(char::is_ascii_digit).collect();
    let plus = number.starts_with('+');
    let digits = if plus { digits.as_str() } else { &digits[2..] };
    let separated = number.contains([' ', '-', '.', '(', '/']);
    // Zeros and many digits in one piece, or one of several groups, are rather an identifier.
    let among_groups = text[..start].trim_end_matches(' ').ends_with(|c: char| c.is_ascii_digit());
    (plus || (separated && !among_groups))
        && PHONE_DIGITS.contains(&digits.len())
        && CALLING_CODES.iter().any(|code| digits.starts_with(code))
        && !is_inside_word(text, start, end)
        && !is_inside_number(text, start, end)
        // A sum: `a + 123`, `)+123`.
        && !text[..start].ends_with([')', ']', '+', '-', '*', '/', '=', '.', ','])
}

/// Only addresses that lead to somebody: not private, local or reserved ones, and not versions (`v1.2.3.4`).
fn is_public_ipv4(text: &str, start: usize, end: usize) -> bool {
    let Ok(address) = text[start..end].parse::<Ipv4Addr>() else { return false };
    let nobody = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_documentation()
        || address.octets()[0] == 0
        || address.octets()[0] >= 240;
    let before = text[..start].trim_end().to_ascii_lowercase();
    let version = VERSION_WORDS.iter().any(|word| before.ends_with(word));
    let goes_on = is_inside_word(text, start, end)
        || text[..start].ends_with('.')
        || (text.as_bytes().get(end) == Some(&b'.')
            && text.as_bytes().get(end + 1).is_some_and(u8::is_ascii_digit));
    !nobody && !version && !goes_on
}
