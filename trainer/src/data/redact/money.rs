//! Bank accounts and payment cards: numbers with a known beginning, a known length and a checksum.

use regex::Regex;

use super::{Found, PiiKind, checksums, is_inside_number, is_inside_word};

/// Length of a country's IBANs. Source: SWIFT's IBAN registry, release 96.
const IBAN_LENGTHS: &[(&str, usize)] = &[
    ("AD", 24),
    ("AE", 23),
    ("AL", 28),
    ("AT", 20),
    ("AZ", 28),
    ("BA", 20),
    ("BE", 16),
    ("BG", 22),
    ("BH", 22),
    ("BR", 29),
    ("BY", 28),
    ("CH", 21),
    ("CR", 22),
    ("CY", 28),
    ("CZ", 24),
    ("DE", 22),
    ("DK", 18),
    ("DO", 28),
    ("EE", 20),
    ("EG", 29),
    ("ES", 24),
    ("FI", 18),
    ("FO", 18),
    ("FR", 27),
    ("GB", 22),
    ("GE", 22),
    ("GI", 23),
    ("GL", 18),
    ("GR", 27),
    ("GT", 28),
    ("HR", 21),
    ("HU", 28),
    ("IE", 22),
    ("IL", 23),
    ("IQ", 23),
    ("IS", 26),
    ("IT", 27),
    ("JO", 30),
    ("KW", 30),
    ("KZ", 20),
    ("LB", 28),
    ("LC", 32),
    ("LI", 21),
    ("LT", 20),
    ("LU", 20),
    ("LV", 21),
    ("LY", 25),
    ("MC", 27),
    ("MD", 24),
    ("ME", 22),
    ("MK", 19),
    ("MR", 27),
    ("MT", 31),
    ("MU", 30),
    ("NL", 18),
    ("NO", 15),
    ("PK", 24),
    ("PL", 28),
    ("PS", 29),
    ("PT", 25),
    ("QA", 29),
    ("RO", 24),
    ("RS", 22),
    ("SA", 24),
    ("SC", 31),
    ("SE", 24),
    ("SI", 19),
    ("SK", 24),
    ("SM", 27),
    ("ST", 25),
    ("SV", 28),
    ("TL", 23),
    ("TN", 24),
    ("TR", 26),
    ("UA", 29),
    ("VA", 22),
    ("VG", 24),
    ("XK", 20),
];

/// First digits of the cards of a network, as a range, and how many digits they have. Source: ISO/IEC 7812 as the
/// networks publish it.
const CARD_RANGES: &[(u32, u32, &[usize])] = &[
    (4, 4, &[13, 16, 19]),
    (51, 55, &[16]),
    (2221, 2720, &[16]),
    (34, 34, &[15]),
    (37, 37, &[15]),
    (6011, 6011, &[16, 19]),
    (644, 649, &[16, 19]),
    (65, 65, &[16, 19]),
    (3528, 3589, &[16, 19]),
    (300, 305, &[14]),
    (36, 36, &[14]),
    (38, 39, &[14]),
    (62, 62, &[16, 17, 18, 19]),
    (50, 50, &[16]),
    (6759, 6763, &[16]),
];

#[derive(Debug)]
pub(super) struct Money {
    iban: Regex,
    card: Regex,
}

impl Money {
    pub(super) fn new() -> Result<Self, regex::Error> {
        Ok(Self {
            iban: Regex::new(r"(?-u:\b[A-Z]{2}[0-9]{2})")?,
            card: Regex::new(r"(?-u:[0-9](?:[ -]?[0-9]){12,18})")?,
        })
    }

    pub(super) fn find(&self, text: &str, found: &mut Vec<Found>) {
        let ibans = self.iban.find_iter(text).filter_map(|at| iban(text, at.start()));
        found.extend(ibans.map(|(start, end)| Found { start, end, kind: PiiKind::Iban }));
        for at in self.card.find_iter(text) {
            if is_card(at.as_str())
                && !is_inside_word(text, at.start(), at.end())
                && !is_inside_number(text, at.start(), at.end())
            {
                found.push(Found { start: at.start(), end: at.end(), kind: PiiKind::Card });
            }
        }
    }
}

/// The account number that begins at `start`, which may have single spaces in it.
fn iban(text: &str, start: usize) -> Option<(usize, usize)> {
    let length =
        |(country, length): &(&str, usize)| text[start..].starts_with(country).then_some(*length);
    let length = IBAN_LENGTHS.iter().find_map(length)?;
    let mut number = String::with_capacity(length);
    let mut end = start;
    let mut bytes = text.as_bytes()[start..].iter().peekable();
    while number.len() < length {
        let byte = *bytes.next()?;
        if byte.is_ascii_uppercase() || byte.is_ascii_digit() {
            number.push(char::from(byte));
        } else if byte != b' ' || bytes.peek().is_none_or(|next| **next == b' ') {
            return None;
        }
        end += 1;
    }
    (checksums::mod_97(&number) && !is_inside_word(text, start, end)).then_some((start, end))
}

fn is_card(number: &str) -> bool {
    let groups: Vec<&str> = number.split([' ', '-']).collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    // In one piece, or in groups as they are printed on cards.
    let printed = match lengths.as_slice() {
        [_] | [4, 6, 4 | 5] => true,
        [rest @ .., last] => rest.iter().all(|length| *length == 4) && (1..=4).contains(last),
        [] => false,
    };
    let mixed = number.contains(' ') && number.contains('-');
    let plain = groups.concat();
    let known = |(first, last, lengths): &(u32, u32, &[usize])| {
        let n_digits = first.ilog10() as usize + 1;
        let beginning = plain[..n_digits].parse::<u32>().unwrap_or(0);
        (*first..=*last).contains(&beginning) && lengths.contains(&plain.len())
    };
    let one_digit = plain.bytes().all(|byte| Some(&byte) == plain.as_bytes().first());
    printed
        && !mixed
        && !one_digit
        && CARD_RANGES.iter().any(known)
        && checksums::digits(&plain).is_some_and(|digits| checksums::luhn(&digits))
}
