//! Numbers that states give to people, of a form that nothing else has or with a checksum; numbers that are plain digits
//! only after a word that announces them.

use regex::Regex;

use super::{
    Found, PiiKind,
    checksums::{digits, luhn, mod_11_10, verhoeff, weighted},
    is_inside_number, is_inside_word,
};

/// Whether a number is one of its kind.
type Check = fn(&str) -> bool;

/// Pattern and check of one number. The check takes what was found without spaces, points, hyphens and slashes; if the
/// pattern has a group, the group is the number.
struct Form {
    pattern: &'static str,
    check: Check,
}

const FORMS: &[Form] = &[
    // Brazil: CPF, as it is written.
    Form { pattern: r"(?-u:[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2})", check: brazil },
    // Finland: henkilötunnus.
    Form {
        pattern: r"(?-u:[0-3][0-9][01][0-9]{3}[-+A-FU-Y][0-9]{3}[0-9A-FHJ-NPR-Y])",
        check: finland,
    },
    // France: NIR, with its key.
    Form {
        pattern: r"(?-u:[12] ?[0-9]{2} ?(?:0[1-9]|1[0-2]|20) ?(?:[0-9]{2}|2[AB]) ?[0-9]{3} ?[0-9]{3} ?[0-9]{2})",
        check: france,
    },
    // Germany: Steuer-Identifikationsnummer.
    Form {
        pattern: r"(?i)\b(?:steuer-?id(?:entifikationsnummer)?|idnr|tin|tax id)\.?:? {0,2}((?-u:[1-9][0-9](?: ?[0-9]{3}){3}))",
        check: |id| digits(id).is_some_and(|digits| mod_11_10(&digits)),
    },
    // India: Aadhaar, in its three groups.
    Form {
        pattern: r"(?-u:[2-9][0-9]{3} [0-9]{4} [0-9]{4})",
        check: |id| digits(id).is_some_and(|digits| verhoeff(&digits)),
    },
    // Italy: codice fiscale.
    Form { pattern: r"(?-u:[A-Z]{6}[0-9]{2}[A-EHLMPRST][0-9]{2}[A-Z][0-9]{3}[A-Z])", check: italy },
    // Netherlands: burgerservicenummer.
    Form {
        pattern: r"(?i)\b(?:bsn|burgerservicenummer|sofinummer)\.?:? {0,2}((?-u:[0-9]{4}\.?[0-9]{2}\.?[0-9]{3}))",
        check: netherlands,
    },
    // Poland: PESEL.
    Form { pattern: r"(?i)\bpesel\.?:? {0,2}((?-u:[0-9]{11}))", check: poland },
    // Spain: DNI and, beginning with a letter, NIE.
    Form { pattern: r"(?-u:[0-9XYZ][0-9]{7}-?[A-HJ-NP-TV-Z])", check: spain },
    // Sweden: personnummer.
    Form { pattern: r"(?-u:(?:19|20)?[0-9]{2}[01][0-9][0-3][0-9][-+][0-9]{4})", check: sweden },
    // United States: a social security number has no checksum, but a form and numbers that are never given.
    Form { pattern: r"(?-u:[0-8][0-9]{2}-[0-9]{2}-[0-9]{4})", check: united_states },
];

#[derive(Debug)]
pub(super) struct NationalIds {
    patterns: Vec<(Regex, Check)>,
}

impl NationalIds {
    pub(super) fn new() -> Result<Self, regex::Error> {
        let compiled = |form: &Form| Ok((Regex::new(form.pattern)?, form.check));
        Ok(Self { patterns: FORMS.iter().map(compiled).collect::<Result<_, regex::Error>>()? })
    }

    pub(super) fn find(&self, text: &str, found: &mut Vec<Found>) {
        for (pattern, check) in &self.patterns {
            for captures in pattern.captures_iter(text) {
                let Some(at) = captures.get(1).or_else(|| captures.get(0)) else { continue };
                let (start, end) = (at.start(), at.end());
                // One of several groups of digits is a part of something else.
                let among_groups = at.as_str().contains(' ')
                    && (text[..start]
                        .trim_end_matches(' ')
                        .ends_with(|c: char| c.is_ascii_digit())
                        || text[end..]
                            .trim_start_matches(' ')
                            .starts_with(|c: char| c.is_ascii_digit()));
                let plain: String = at.as_str().chars().filter(|c| !" ./".contains(*c)).collect();
                if !among_groups
                    && check(&plain)
                    && !is_inside_word(text, start, end)
                    && !is_inside_number(text, start, end)
                {
                    found.push(Found { start, end, kind: PiiKind::NationalId });
                }
            }
        }
    }
}

fn brazil(id: &str) -> bool {
    let Some(digits) = digits(&id.replace('-', "")) else { return false };
    let check = |n: usize| {
        let weights: Vec<u32> = (2..=11).rev().skip(10 - n).collect();
        weighted(&digits[..n], &weights) * 10 % 11 % 10 == digits[n]
    };
    digits.len() == 11 && digits.iter().any(|digit| *digit != digits[0]) && check(9) && check(10)
}

fn finland(id: &str) -> bool {
    const LETTERS: &[u8] = b"0123456789ABCDEFHJKLMNPRSTUVWXY";
    let number = [&id[..6], &id[7..10]].concat().parse::<usize>();
    let day = id[..2].parse::<u32>().unwrap_or(0);
    (1..=31).contains(&day) && number.is_ok_and(|number| LETTERS[number % 31] == id.as_bytes()[10])
}

fn france(id: &str) -> bool {
    // Corsica's departments count as 19 and 18.
    let plain = id.replace("2A", "19").replace("2B", "18");
    let (Ok(body), Ok(key)) = (plain[..13].parse::<u64>(), plain[13..].parse::<u64>()) else {
        return false;
    };
    97 - body % 97 == key
}

fn italy(id: &str) -> bool {
    const ODD: [u32; 36] = [
        1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3,
        6, 8, 12, 14, 16, 10, 22, 25, 24, 23,
    ];
    let value = |(place, character): (usize, char)| {
        let index = character.to_digit(36).unwrap_or(0);
        let even = if index < 10 { index } else { index - 10 };
        if place % 2 == 0 { ODD[index as usize] } else { even }
    };
    let sum: u32 = id[..15].chars().enumerate().map(value).sum();
    id[15..].chars().next().and_then(|check| check.to_digit(36)) == Some(10 + sum % 26)
}

fn netherlands(id: &str) -> bool {
    digits(id).is_some_and(|digits| {
        let sum = weighted(&digits[..8], &[9, 8, 7, 6, 5, 4, 3, 2]);
        sum > 0 && sum % 11 == digits[8]
    })
}

fn poland(id: &str) -> bool {
    digits(id).is_some_and(|digits| {
        let sum = weighted(&digits, &[1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1]);
        sum > 0 && sum.is_multiple_of(10)
    })
}

fn spain(id: &str) -> bool {
    const LETTERS: &[u8] = b"TRWAGMYFPDXBNJZSQVHLCKE";
    let plain = id.replace('-', "").replace('X', "0").replace('Y', "1").replace('Z', "2");
    // The last letter is not among those replaced where it counts: it is taken from the id itself.
    let letter = id.as_bytes()[id.len() - 1];
    plain[..8].parse::<usize>().is_ok_and(|number| LETTERS[number % 23] == letter)
}

fn sweden(id: &str) -> bool {
    let plain = id.replace(['-', '+'], "");
    let short = &plain[plain.len() - 10..];
    let number = |range: std::ops::Range<usize>| short[range].parse::<u32>().unwrap_or(0);
    (1..=12).contains(&number(2..4))
        && (1..=31).contains(&number(4..6))
        && digits(short).is_some_and(|digits| luhn(&digits))
}

fn united_states(id: &str) -> bool {
    let [area, group, serial] = [&id[..3], &id[4..6], &id[7..]];
    area != "000" && area != "666" && group != "00" && serial != "0000" && id != "078-05-1120"
}
