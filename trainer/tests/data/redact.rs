//! Redaction: what is personal goes, what only looks like it stays.

use pleach_trainer::data::{PiiKind, Redactor};
use serde_json::json;

fn redacted(text: &str) -> String {
    Redactor::new().unwrap().conversation().redact(text).into_owned()
}

/// Every case is found, whole, at the beginning, in the middle and at the end of a text, and in brackets.
fn check_found(kind: &str, cases: &[&str]) {
    for case in cases {
        let placeholder = format!("<{kind}_1>");
        for (before, after) in [
            ("", ""),
            ("It is ", "."),
            ("(", ")"),
            ("a: ", "\n"),
            ("\"", "\", and so on"),
            ("", " and"),
        ] {
            let found = redacted(&format!("{before}{case}{after}"));
            assert_eq!(found, format!("{before}{placeholder}{after}"), "{case:?}");
        }
    }
}

fn check_kept(cases: &[&str]) {
    for case in cases {
        for text in [(*case).to_owned(), format!("see {case} there"), format!("({case}), or")] {
            assert_eq!(redacted(&text), text, "{case:?}");
        }
    }
}

#[test]
fn addresses() {
    check_found(
        "EMAIL",
        &[
            "ann@example.org",
            "Ann.O-Neil+x@mail.example.co.uk",
            "a_b%c@x-y.io",
            "1234@qq.com",
            "JOHN@EXAMPLE.COM",
        ],
    );
    check_kept(&[
        "user@localhost",
        "icon@2x.png",
        "logo@3x.jpg",
        "git@github.com:org/repo.git",
        "@dataclass",
        "name@1.2.3",
        "a @ b.c",
        "react@18.2.0",
        "x@-bad.com",
        "@media print",
        "foo@bar",
        "5 apples @ 2.50",
        "matrix A@B.T",
    ]);
}

#[test]
fn telephone_numbers() {
    check_found(
        "PHONE",
        &[
            "+49 30 901820",
            "+1 (415) 555-2671",
            "+14155552671",
            "+44 20 7946 0958",
            "0049 30 901820",
            "+33 1 23 45 67 89",
            "+91-98765-43210",
            "(415) 555-2671",
            "415-555-2671",
            "415.555.2671",
            "+55 11 91234-5678",
            "+86 138 0013 8000",
        ],
    );
    assert_eq!(redacted("Tel.: 030 901820, please"), "Tel.: <PHONE_1>, please");
    assert_eq!(redacted("Call me at 0171 2345678!"), "Call me at <PHONE_1>!");
    assert_eq!(redacted("mobile number: (089) 12 34 56"), "mobile number: <PHONE_1>");
    check_kept(&[
        "1234567890",
        "555",
        "12-34-56",
        "2 + 2 = 4",
        "x+1234567890",
        "(a)+12345678901",
        "+5",
        "1+2+3+4+5+6+7+8",
        "100-200-3000",
        "0.8005552671",
        "call 5 times",
        "0012345678901",
        "415-555-26711",
        "3-415-555-2671",
        "+0123456789",
        "text 12 lines",
        "phone 15 pro",
        "1,415,555,267",
    ]);
}

#[test]
fn internet_addresses() {
    check_found(
        "IP",
        &[
            "8.8.8.8",
            "93.184.216.34",
            "2001:4860:4860::8888",
            "2a00:1450:4001:81b::200e",
            "2606:2800:220:1:248:1893:25c8:1946",
        ],
    );
    assert_eq!(redacted("http://93.184.216.34:8080/x"), "http://<IP_1>:8080/x");
    check_kept(&[
        "127.0.0.1",
        "0.0.0.0",
        "192.168.1.1",
        "10.0.0.7",
        "172.16.4.2",
        "255.255.255.0",
        "224.0.0.1",
        "192.0.2.1",
        "256.1.1.1",
        "1.2.3",
        "v1.2.3.4",
        "version 4.18.0.1",
        "1.2.3.4.5",
        "1.2.3.4.5.6",
        "::1",
        "fe80::1",
        "2001:db8::1",
        "std::vec::Vec",
        "a::b::c",
        "12:34:56",
        "2024:01:02",
        "face::book",
        "20:30:40:50",
        "0.1.2.3",
        "numpy==1.26.4.1",
    ]);
}

#[test]
fn accounts_and_cards() {
    check_found(
        "IBAN",
        &[
            "DE89370400440532013000",
            "DE89 3704 0044 0532 0130 00",
            "GB82 WEST 1234 5698 7654 32",
            "NL91ABNA0417164300",
            "FR14 2004 1010 0505 0001 3M02 606",
            "NO9386011117947",
            "CH93 0076 2011 6238 5295 7",
            "MT84MALT011000012345MTLCAST001S",
        ],
    );
    check_kept(&[
        "DE89370400440532013001",
        "DE00 3704 0044 0532 0130 00",
        "GB82",
        "AB12CDEF3456",
        "XX82WEST12345698765432",
        "US12345678901234567890",
    ]);
    check_found(
        "CARD",
        &[
            "4111111111111111",
            "4111 1111 1111 1111",
            "5555-5555-5555-4444",
            "378282246310005",
            "3782 822463 10005",
            "6011111111111117",
            "30569309025904",
            "3530111333300000",
            "4242424242424242",
            "2223003122003222",
            "4222222222222",
        ],
    );
    check_kept(&[
        "4111111111111112",
        "1234567812345678",
        "0000000000000000",
        "4111 1111-1111 1111",
        "41 11 11 11 11 11 11 11",
        "1609459200000",
        "1609459200000000000",
        "9007199254740993",
        "3.14159265358979",
        "4111111111111111.5",
        "978-3-16-148410-0",
        "9783161484100",
        "0x4111111111111111",
        "id_4111111111111111",
        "41111111111111111111",
        "20240131123456",
        "2147483647",
        "18446744073709551615",
        "1/4111111111111111",
    ]);
}

#[test]
fn national_numbers() {
    check_found(
        "NATIONAL_ID",
        &[
            "529.982.247-25",
            "111.444.777-35",
            "131052-308T",
            "2 55 08 14 168 025 38",
            "255081416802538",
            "RSSMRA85T10A562S",
            "12345678Z",
            "X1234567L",
            "12345678-Z",
            "811218-9876",
            "19811218-9876",
            "123-45-6789",
            "2341 2341 2346",
        ],
    );
    for (text, expected) in [
        ("PESEL: 44051401359", "PESEL: <NATIONAL_ID_1>"),
        ("BSN 111222333.", "BSN <NATIONAL_ID_1>."),
        ("Steuer-ID: 86 095 742 719", "Steuer-ID: <NATIONAL_ID_1>"),
        ("tax id 86095742719", "tax id <NATIONAL_ID_1>"),
    ] {
        assert_eq!(redacted(text), expected);
    }
    check_kept(&[
        "529.982.247-26",
        "111.111.111-11",
        "131052-308U",
        "255081416802539",
        "RSSMRA85T10A562T",
        "12345678A",
        "811218-9877",
        "000-12-3456",
        "666-12-3456",
        "123-00-4567",
        "2341 2341 2347",
        "44051401359",
        "111222333",
        "86095742719",
        "PESEL 44051401358",
        "BSN 111222334",
        "1234-56-7890",
        "2024-01-0001",
        "2341 2341 2346 1234",
        "811318-9876",
    ]);
}

#[test]
fn secrets() {
    check_found(
        "SECRET",
        &[
            "sk-abcdefghijklmnopqrstuvwx",
            "sk-proj-A1b2C3d4E5f6G7h8I9j0K1l2",
            "sk-ant-api03-abc_DEF-0123456789abcdef",
            "ghp_abcdefghijklmnopqrstuvwxyzABCDEF0123",
            "github_pat_11ABCDEFG0abcdefghijkl_mnop",
            "glpat-abcDEF123456ghiJKL78",
            "xoxb-123456789012-abcdefGHIJKL",
            "AKIAIOSFODNN7EXAMPLE",
            "AIzaSyA1234567890abcdefghijklmnopqrstuv",
            "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
            "npm_abcdefghijklmnopqrstuvwxyz0123456789",
            "sk_live_abcdefghijklmnop1234",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEX4MPL3KEY9",
            "Zx8kQ2vLp9Rt4Wm7Yb3Nc6Hd1Jf5Gs0A",
            "plk_0123456789abcdef_0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ],
    );
    let key =
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\nabc+/=\n-----END RSA PRIVATE KEY-----";
    check_found("SECRET", &[key]);
    for (text, expected) in [
        ("postgres://ann:pa$s@db.example.org/x", "postgres://<CREDENTIALS_1>@db.example.org/x"),
        ("https://u:p@example.com", "https://<CREDENTIALS_1>@example.com"),
        ("https://x.org/a?b=1&token=abcdef123&c=2", "https://x.org/a?b=1&token=<SECRET_1>&c=2"),
        ("https://x.org/?api_key=abcdef", "https://x.org/?api_key=<SECRET_1>"),
    ] {
        assert_eq!(redacted(text), expected);
    }
    check_kept(&[
        "da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "550e8400-e29b-41d4-a716-446655440000",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "AbstractSingletonProxyFactoryBean",
        "getElementsByTagNameNS2AndSomething",
        "THE_QUICK_BROWN_FOX_JUMPED_OVER",
        "the-quick-brown-fox-jumped-over-it",
        "/usr/local/lib/python3.11/site-packages/numpy/core",
        "sk-short",
        "ghp_short",
        "task-abcdefghijklmnopqrstuvwx",
        "token = tokenizer.encode(text)",
        "password: str",
        "https://x.org/a:b",
        "https://x.org/?page=12&sort=ascending",
        "sha512-oRBFTCUZGYHHHLhYTCPyiJQBBsIZ5dDDXC5T8MGgHKNkIJYGTZIVGZW8k1BzLTkaZo5ciFyPQbCbJLTLTGZm0w==",
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAUAAAAFCAYAAACNbyblAAAAHElEQVQI12P4",
        "http://localhost:8080/a@b",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKq3vL0W5cJ7n2x4Q8rT6yU1iO9pA3sD5fG7hJ2kL4zX",
        "Llanfairpwllgwyngyllgogerychwyrndrobwll",
        "2024-01-31T12:34:56.789012345Z",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
    ]);
}

#[test]
fn ordinary_text_and_code_stay_as_they_are() {
    check_kept(&[
        "In 1987 about 12,000 people lived there; by 2021 there were 34,567.",
        "let x: [u64; 4] = [0x9e3779b97f4a7c15, 1234567890123, 42, 7];",
        "for i in range(100): print(f\"{i:>10}: {data[i]['value']:.3f}\")",
        "SELECT * FROM t WHERE id IN (1001, 1002, 1003) AND at > '2024-01-31 12:00:00'",
        "<a href=\"https://example.org/path/to/page.html#section-2\">here</a>",
        "E = mc^2, pi = 3.14159265358979323846, 6.02214076e23, 1/137.035999084",
        "#include <vector>\nstd::map<std::string, int> m{{\"a\", 1}};",
        "Opening hours: 9:00-17:30, Mon-Fri; room 415-555; order no. 2024/000123.",
        "rgb(255, 255, 255), #ff00ff, 10px 20px 30px 40px, 1920x1080",
        "Chapter 3.2.1.4 explains it; see also Fig. 12-34 and ISO 8601-1:2019.",
    ]);
    let reference = crate::common::fixture("reference/inputs/text.txt");
    let found = redacted(&reference);
    assert_eq!(
        found.matches("<SECRET_").count()
            + found.matches("<CARD_").count()
            + found.matches("<NATIONAL_ID_").count(),
        0
    );
}

#[test]
fn a_value_has_one_number_in_a_conversation() {
    let redactor = Redactor::new().unwrap();
    let mut conversation = redactor.conversation();
    assert_eq!(
        conversation.redact("Not ann@example.org but ben@example.org, no: ANN@example.org"),
        "Not <EMAIL_1> but <EMAIL_2>, no: <EMAIL_1>"
    );
    assert_eq!(conversation.redact("ben@example.org, 4111 1111 1111 1111"), "<EMAIL_2>, <CARD_1>");
    assert_eq!(conversation.redact("4111-1111-1111-1111"), "<CARD_1>");
    assert_eq!(conversation.redact("nothing here"), "nothing here");
    let counts: Vec<_> = conversation.counts().iter().map(|(kind, n)| (*kind, *n)).collect();
    assert_eq!(counts, [(PiiKind::Email, 4), (PiiKind::Card, 2)]);
    assert_eq!(redactor.conversation().redact("ben@example.org"), "<EMAIL_1>");
}

#[test]
fn messages_are_redacted_in_all_their_strings() {
    let redactor = Redactor::new().unwrap();
    let mut messages = json!([
        {"role": "user", "content": [{"type": "text", "text": "I am ann@example.org"}]},
        {"role": "assistant", "content": null, "tool_calls": [
            {"type": "function", "function": {"name": "mail", "arguments": "{\"to\": \"ann@example.org\", \"n\": 2}"}},
        ]},
    ]);
    redactor.conversation().redact_json(&mut messages);
    assert_eq!(messages[0]["content"][0]["text"], "I am <EMAIL_1>");
    assert_eq!(
        messages[1]["tool_calls"][0]["function"]["arguments"],
        r#"{"to": "<EMAIL_1>", "n": 2}"#
    );
    assert_eq!(messages[1]["content"], serde_json::Value::Null);
}

#[test]
fn the_time_is_linear_in_the_text() {
    let redactor = Redactor::new().unwrap();
    for pattern in [
        "a@",
        "1 ",
        "+49 ",
        "DE89",
        "a.",
        "sk-",
        "4111 ",
        ":",
        "Aa1",
        "-----BEGIN PRIVATE KEY-----",
        "x://a:",
    ] {
        let once = |n: usize| {
            let text = pattern.repeat(n / pattern.len());
            let began = std::time::Instant::now();
            redactor.conversation().redact(&text);
            began.elapsed().as_secs_f64()
        };
        // The least of several: the machine may be busy.
        let time = |n| (0..5).map(|_| once(n)).fold(f64::INFINITY, f64::min);
        let (short, long) = (time(1 << 15), time(1 << 18));
        // Eight times the text; by the square it would be 64 times the time.
        assert!(long < short * 30.0 + 0.05, "{pattern:?}: {short} s, {long} s");
    }
}
