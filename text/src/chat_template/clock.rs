//! `strftime_now`: the date that some templates put into the system message. In UTC, so that it doesn't depend on the
//! machine that serves.

use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const SECONDS_PER_DAY: u64 = 86_400;

/// A moment taken apart.
struct Civil {
    year: u64,
    /// From 1.
    month: u64,
    /// From 1.
    day: u64,
    /// From 1.
    day_of_year: u64,
    /// From Sunday, 0.
    weekday: usize,
    hour: u64,
    minute: u64,
    second: u64,
    micros: u32,
}

/// Formats a moment as C's `strftime` does in the C locale. A directive that isn't known is an error that names it;
/// times before 1970 count as 1970.
///
/// # Errors
/// The directive that isn't known.
pub fn strftime(format: &str, now: SystemTime) -> Result<String, String> {
    let civil = Civil::of(now);
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(character) = rest.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let directive = rest.next();
        // "%-d": without the leading zero.
        let (directive, padded) =
            if directive == Some('-') { (rest.next(), false) } else { (directive, true) };
        let Some(directive) = directive else {
            return Err("strftime format ends in the middle of a directive".to_owned());
        };
        let text = civil
            .format(directive)
            .ok_or_else(|| format!("strftime directive not supported: %{directive}"))?;
        let short = text.trim_start_matches(['0', ' ']);
        out.push_str(match (padded, short) {
            (true, _) => &text,
            (false, "") => "0",
            (false, short) => short,
        });
    }
    Ok(out)
}

impl Civil {
    fn of(now: SystemTime) -> Self {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (days, in_day) = (since.as_secs() / SECONDS_PER_DAY, since.as_secs() % SECONDS_PER_DAY);
        let mut year = 1970;
        let mut day = days;
        // 400 Gregorian years are 146 097 days; the loop below is then short for any moment.
        year += 400 * (day / 146_097);
        day %= 146_097;
        while day >= days_in_year(year) {
            day -= days_in_year(year);
            year += 1;
        }
        let day_of_year = day + 1;
        let mut month = 1;
        while day >= days_in_month(year, month) {
            day -= days_in_month(year, month);
            month += 1;
        }
        Self {
            year,
            month,
            day: day + 1,
            day_of_year,
            // 1 January 1970 was a Thursday.
            weekday: usize::try_from((days + 4) % 7).unwrap_or(0),
            hour: in_day / 3600,
            minute: in_day / 60 % 60,
            second: in_day % 60,
            micros: since.subsec_micros(),
        }
    }

    fn format(&self, directive: char) -> Option<String> {
        let day_name = DAYS[self.weekday];
        let month_name = MONTHS[usize::try_from(self.month - 1).unwrap_or(0)];
        let hour_12 = if self.hour.is_multiple_of(12) { 12 } else { self.hour % 12 };
        Some(match directive {
            'A' => day_name.to_owned(),
            'a' => day_name[..3].to_owned(),
            'B' => month_name.to_owned(),
            'b' | 'h' => month_name[..3].to_owned(),
            'd' => format!("{:02}", self.day),
            'D' => format!("{:02}/{:02}/{:02}", self.month, self.day, self.year % 100),
            'e' => format!("{:2}", self.day),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'f' => format!("{:06}", self.micros),
            'H' => format!("{:02}", self.hour),
            'I' => format!("{hour_12:02}"),
            'j' => format!("{:03}", self.day_of_year),
            'M' => format!("{:02}", self.minute),
            'm' => format!("{:02}", self.month),
            'n' => "\n".to_owned(),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
            'R' => format!("{:02}:{:02}", self.hour, self.minute),
            'S' => format!("{:02}", self.second),
            'T' => format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            't' => "\t".to_owned(),
            'u' => if self.weekday == 0 { 7 } else { self.weekday }.to_string(),
            'w' => self.weekday.to_string(),
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in_year(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_in_month(year: u64, month: u64) -> u64 {
    match month {
        2 => 28 + u64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn check(seconds: u64, format: &str, expected: &str) {
        assert_eq!(
            strftime(format, UNIX_EPOCH + Duration::from_secs(seconds)).as_deref(),
            Ok(expected)
        );
    }

    #[test]
    fn known_moments() {
        check(0, "%Y-%m-%d %H:%M:%S %a %j", "1970-01-01 00:00:00 Thu 001");
        check(951_782_400, "%d %b %Y, %A", "29 Feb 2000, Tuesday");
        check(1_721_952_000, "%d %B %Y", "26 July 2024");
        check(1_735_689_599, "%F %T %p %I %j %u%%", "2024-12-31 23:59:59 PM 11 366 2%");
        check(4_102_444_800, "%-d/%-m/%y %-H", "1/1/00 0");
        check(13_569_465_600, "%F", "2400-01-01");
    }

    #[test]
    fn unknown_directives_are_named() {
        let error = strftime("%Q", UNIX_EPOCH).unwrap_err();
        assert_eq!(error, "strftime directive not supported: %Q");
        assert!(strftime("%", UNIX_EPOCH).is_err());
    }
}
