//! What opens doors: private keys, API keys, tokens, and passwords in URLs.

use regex::Regex;

use super::{Found, PiiKind, is_inside_word};

/// Beginnings of keys that their issuers made recognizable, and what follows. One alternative each.
const KEYS: &[&str] = &[
    // OpenAI, Anthropic and those who copied them.
    r"sk-[A-Za-z0-9_-]{20,200}",
    // Ours.
    r"plk_[0-9a-f]{16}_[0-9a-f]{64}",
    // Stripe.
    r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,200}",
    // GitHub.
    r"gh[pousr]_[A-Za-z0-9]{36,255}",
    r"github_pat_[A-Za-z0-9_]{22,255}",
    // GitLab.
    r"glpat-[A-Za-z0-9_-]{20,64}",
    // Slack.
    r"xox[abeoprs]-[A-Za-z0-9-]{10,250}",
    // Amazon.
    r"(?:AKIA|ASIA)[A-Z0-9]{16}",
    // Google.
    r"AIza[A-Za-z0-9_-]{35}",
    r"ya29\.[A-Za-z0-9_-]{20,250}",
    // Hugging Face, npm, PyPI, Docker, DigitalOcean, SendGrid.
    r"hf_[A-Za-z0-9]{30,64}",
    r"npm_[A-Za-z0-9]{36}",
    r"pypi-[A-Za-z0-9_-]{40,250}",
    r"dckr_pat_[A-Za-z0-9_-]{20,64}",
    r"do[opr]_v1_[0-9a-f]{64}",
    r"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}",
    // JSON web tokens.
    r"eyJ[A-Za-z0-9_-]{8,500}\.eyJ[A-Za-z0-9_-]{8,900}\.[A-Za-z0-9_-]{8,500}",
];

/// Characters of a token without a known beginning. What has more than 200 is data, not a key.
const TOKEN_BYTES_MIN: usize = 24;
/// Bits a character, by the frequencies in the token itself: 24 random letters and digits have about 4.2.
const ENTROPY_MIN: f64 = 3.9;
/// Letters of one case in a row; words have more.
const RUN_MAX: usize = 6;
/// Changes between letters and digits; names with a number at the end have one or two.
const CHANGES_MIN: usize = 4;

#[derive(Debug)]
pub(super) struct Secrets {
    private_key: Regex,
    keys: Regex,
    token: Regex,
    credentials: Regex,
    parameter: Regex,
}

impl Secrets {
    pub(super) fn new() -> Result<Self, regex::Error> {
        Ok(Self {
            private_key: Regex::new(
                r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----[^-]*-----END [A-Z0-9 ]{1,48}-----",
            )?,
            keys: Regex::new(&format!("(?-u:{})", KEYS.join("|")))?,
            token: Regex::new(r"(?-u:[A-Za-z0-9+/_-]{24,200}={0,2})")?,
            credentials: Regex::new(
                r"(?-u:\b[a-z][a-z0-9+.-]{1,20}://([A-Za-z0-9%._~!$&'()*+,;=-]{1,128}:[A-Za-z0-9%._~!$&'()*+,;=:-]{1,128})@)",
            )?,
            parameter: Regex::new(
                r"(?i-u:[?&](?:access_token|api_?key|auth|key|password|pwd|secret|sig|signature|token)=([A-Za-z0-9%._~+/=-]{6,512}))",
            )?,
        })
    }

    pub(super) fn find(&self, text: &str, found: &mut Vec<Found>) {
        let mut add = |start, end, kind| found.push(Found { start, end, kind });
        for at in self.private_key.find_iter(text) {
            add(at.start(), at.end(), PiiKind::Secret);
        }
        for at in self.keys.find_iter(text) {
            if !is_inside_word(text, at.start(), at.end()) {
                add(at.start(), at.end(), PiiKind::Secret);
            }
        }
        for at in self.token.find_iter(text) {
            if is_random(at.as_str())
                && !is_public(&text[..at.start()], at.as_str())
                && !is_inside_word(text, at.start(), at.end())
            {
                add(at.start(), at.end(), PiiKind::Secret);
            }
        }
        for (pattern, kind) in
            [(&self.credentials, PiiKind::Credentials), (&self.parameter, PiiKind::Secret)]
        {
            for at in pattern.captures_iter(text).filter_map(|captures| captures.get(1)) {
                add(at.start(), at.end(), kind);
            }
        }
    }
}

/// Whether a token looks drawn at random: upper and lower case and digits, much entropy, no words in it. Hexadecimal
/// digests and UUIDs have one case only and are no secrets.
fn is_random(token: &str) -> bool {
    let token = token.trim_end_matches('=');
    let bytes = token.as_bytes();
    let has = |test: fn(&u8) -> bool| bytes.iter().any(test);
    bytes.len() >= TOKEN_BYTES_MIN
        && has(u8::is_ascii_uppercase)
        && has(u8::is_ascii_lowercase)
        && has(u8::is_ascii_digit)
        && changes(bytes) >= CHANGES_MIN
        && longest_run(bytes) <= RUN_MAX
        && entropy(bytes) >= ENTROPY_MIN
}

/// Random, but meant to be seen: digests of packages, embedded data, public keys.
fn is_public(before: &str, token: &str) -> bool {
    const BEGINNINGS: &[&str] = &["sha256-", "sha384-", "sha512-", "AAAA"];
    BEGINNINGS.iter().any(|beginning| token.starts_with(beginning))
        || before.ends_with("base64,")
        || before.ends_with("h1:")
}

fn changes(bytes: &[u8]) -> usize {
    let alphanumeric: Vec<bool> =
        bytes.iter().filter(|byte| byte.is_ascii_alphanumeric()).map(u8::is_ascii_digit).collect();
    alphanumeric.windows(2).filter(|pair| pair[0] != pair[1]).count()
}

fn longest_run(bytes: &[u8]) -> usize {
    let case = |byte: &u8| (byte.is_ascii_lowercase(), byte.is_ascii_uppercase());
    let letters = bytes.chunk_by(|a, b| case(a) == case(b));
    letters.filter(|run| run[0].is_ascii_alphabetic()).map(<[u8]>::len).max().unwrap_or(0)
}

/// Shannon's, in bits a character.
fn entropy(bytes: &[u8]) -> f64 {
    let mut counts = [0_u32; 256];
    for byte in bytes {
        counts[usize::from(*byte)] += 1;
    }
    let n_bytes = bytes.len() as f64;
    let share = counts.iter().filter(|n| **n > 0).map(|n| f64::from(*n) / n_bytes);
    -share.map(|share| share * share.log2()).sum::<f64>()
}
