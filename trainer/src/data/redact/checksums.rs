//! Check digits. All take what was found without its separators.

/// Values of the decimal digits; `None` if there is anything else.
pub(super) fn digits(text: &str) -> Option<Vec<u32>> {
    text.chars().map(|character| character.to_digit(10)).collect()
}

/// Luhn (ISO/IEC 7812): payment cards, Swedish personal numbers.
pub(super) fn luhn(digits: &[u32]) -> bool {
    let doubled = |(place, &digit): (usize, &u32)| {
        if place % 2 == 0 { digit } else { digit * 2 / 10 + digit * 2 % 10 }
    };
    digits.iter().rev().enumerate().map(doubled).sum::<u32>().is_multiple_of(10)
}

/// ISO 7064 mod 97-10 with the first four characters moved to the end: IBAN.
pub(super) fn mod_97(iban: &str) -> bool {
    let Some((head, tail)) = iban.split_at_checked(4) else { return false };
    let value = |rest: u32, character: char| {
        let digit = character.to_digit(36)?;
        Some(if digit < 10 { (rest * 10 + digit) % 97 } else { (rest * 100 + digit) % 97 })
    };
    tail.chars().chain(head.chars()).try_fold(0, value) == Some(1)
}

/// ISO 7064 mod 11,10: German tax number.
pub(super) fn mod_11_10(digits: &[u32]) -> bool {
    let Some((check, body)) = digits.split_last() else { return false };
    let product = body.iter().fold(10, |product, digit| {
        let sum = (digit + product) % 10;
        (if sum == 0 { 10 } else { sum }) * 2 % 11
    });
    (11 - product) % 10 == *check
}

/// Sum of digits times weights, the shorter of the two deciding.
pub(super) fn weighted(digits: &[u32], weights: &[u32]) -> u32 {
    digits.iter().zip(weights).map(|(digit, weight)| digit * weight).sum()
}

/// Verhoeff 1969, over the dihedral group of the pentagon: Indian Aadhaar.
pub(super) fn verhoeff(digits: &[u32]) -> bool {
    digits
        .iter()
        .rev()
        .enumerate()
        .fold(0, |check, (place, &digit)| product(check, permuted(digit, place % 8)))
        == 0
}

/// Product in the dihedral group of ten elements: 0 to 4 turn, 5 to 9 turn and mirror.
fn product(a: u32, b: u32) -> u32 {
    match (a < 5, b < 5) {
        (true, true) => (a + b) % 5,
        (true, false) => 5 + (a + b - 5) % 5,
        (false, true) => 5 + (a - 5 + 5 - b) % 5,
        (false, false) => (a + 5 - b) % 5,
    }
}

/// Verhoeff's permutation, applied `times` times.
fn permuted(digit: u32, times: usize) -> u32 {
    const PERMUTATION: [u32; 10] = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4];
    (0..times).fold(digit, |digit, _| PERMUTATION[digit as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<u32> {
        digits(text).unwrap()
    }

    #[test]
    fn published_examples() {
        assert!(luhn(&of("79927398713")) && luhn(&of("4539578763621486")));
        assert!(mod_97("GB82WEST12345698765432") && mod_97("DE89370400440532013000"));
        assert!(mod_11_10(&of("86095742719")));
        assert!(verhoeff(&of("2363")) && verhoeff(&of("123451")));
    }

    #[test]
    fn one_wrong_digit_is_seen() {
        for (text, valid) in [
            ("79927398713", luhn as fn(&[u32]) -> bool),
            ("86095742719", mod_11_10),
            ("123451", verhoeff),
        ] {
            let right = of(text);
            for place in 0..right.len() {
                for other in (0..10).filter(|other| *other != right[place]) {
                    let mut wrong = right.clone();
                    wrong[place] = other;
                    assert!(!valid(&wrong), "{wrong:?}");
                }
            }
        }
        assert!(!mod_97("DE89370400440532013001") && !mod_97("DE") && !mod_97("DE8937-"));
    }
}
