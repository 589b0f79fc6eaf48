//! Losses by step as a picture, in SVG: no script, no font of its own, the same bytes for the same numbers.

use std::fmt::Write as _;

use super::curves::Curves;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 68.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 56.0;
/// Points of a line; of longer trainings each is the mean of several steps.
const POINTS_MAX: usize = 600;
/// Lines of the grid, about.
const TICKS: f64 = 6.0;
const TRAIN: &str = "#2563eb";
const VALIDATION: &str = "#d9480f";

/// Ticks at round numbers that enclose all values.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Scale {
    low: f64,
    high: f64,
    tick: f64,
    /// Where `low` and `high` are in the picture.
    from: f64,
    to: f64,
}

impl Scale {
    fn new(values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        let (low, high) =
            if low.is_finite() && high.is_finite() { (low, high) } else { (0.0, 1.0) };
        // A line that does not move lies in the middle.
        let pad = if high > low { 0.0 } else { 0.5 * low.abs().max(1.0) };
        let (low, high) = (low - pad, high + pad);
        let rough = (high - low) / TICKS;
        let power = 10f64.powf(rough.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
        let tick = steps.into_iter().find(|step| *step >= rough).unwrap_or(10.0 * power);
        let (low, high) = ((low / tick).floor() * tick, (high / tick).ceil() * tick);
        Self { low, high, tick, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let Self { low, high, tick, .. } = *self;
        let n = ((high - low) / tick).round();
        (0..=64).map(f64::from).take_while(move |index| *index <= n).map(move |i| low + i * tick)
    }

    /// As many digits as tell two ticks apart.
    fn label(&self, value: f64) -> String {
        let digits = (-self.tick.log10().floor()).clamp(0.0, 9.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 9")]
        let digits = digits as usize;
        let text = format!("{value:.digits$}");
        // A negative zero.
        if text.trim_start_matches(['-', '0', '.']).is_empty() {
            text.replace('-', "")
        } else {
            text
        }
    }
}

/// The picture. `title` may hold anything.
pub(super) fn loss_svg(title: &str, curves: &Curves) -> String {
    let all = || curves.train.iter().chain(&curves.validation);
    let x = Scale::new(all().map(|point| point.0), LEFT, WIDTH - RIGHT);
    let y = Scale::new(all().map(|point| point.1), HEIGHT - BOTTOM, TOP);
    let mut svg = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        svg,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>{title}</title>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"26\" font-size=\"16\" fill=\"#111\">{title}</text>\n",
        title = escaped(title),
    );
    axes(&mut svg, &x, &y);
    line(&mut svg, &curves.train, &x, &y, TRAIN);
    line(&mut svg, &curves.validation, &x, &y, VALIDATION);
    for &(step, loss) in &curves.validation {
        let (cx, cy) = (x.place(step), y.place(loss));
        let _ = writeln!(
            svg,
            "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3.5\" fill=\"{VALIDATION}\"/>"
        );
    }
    legend(&mut svg, !curves.validation.is_empty());
    svg.push_str("</svg>\n");
    svg
}

fn axes(svg: &mut String, x: &Scale, y: &Scale) {
    let (left, right, top, bottom) = (LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM);
    for value in y.ticks() {
        let (at, label) = (y.place(value), y.label(value));
        let _ = writeln!(
            svg,
            "<line x1=\"{left}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"#e5e7eb\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#444\">{label}</text>",
            left - 8.0,
            at + 4.0,
        );
    }
    for value in x.ticks() {
        let (at, label) = (x.place(value), x.label(value));
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"{bottom}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"#444\"/>\n\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#444\">{label}</text>",
            bottom + 5.0,
            bottom + 19.0,
        );
    }
    let (middle_x, middle_y) = (f64::midpoint(left, right), f64::midpoint(top, bottom));
    let _ = writeln!(
        svg,
        "<path d=\"M{left} {top}V{bottom}H{right}\" fill=\"none\" stroke=\"#444\"/>\n\
         <text x=\"{middle_x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#111\">step</text>\n\
         <text transform=\"translate(16 {middle_y:.1}) rotate(-90)\" text-anchor=\"middle\" fill=\"#111\">loss</text>",
        HEIGHT - 14.0,
    );
}

fn line(svg: &mut String, points: &[(f64, f64)], x: &Scale, y: &Scale, colour: &str) {
    if points.is_empty() {
        return;
    }
    let stride = points.len().div_ceil(POINTS_MAX);
    let mean = |points: &[(f64, f64)]| {
        let n = points.len() as f64;
        let (steps, losses) =
            points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (steps / n, losses / n)
    };
    let places = points.chunks(stride).map(mean);
    let places: Vec<String> =
        places.map(|(step, loss)| format!("{:.1},{:.1}", x.place(step), y.place(loss))).collect();
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" stroke-linejoin=\"round\"/>",
        places.join(" "),
    );
}

fn legend(svg: &mut String, has_validation: bool) {
    let entries = [("training", TRAIN, true), ("validation", VALIDATION, has_validation)];
    let mut at = WIDTH - RIGHT - 180.0;
    for (name, colour, _) in entries.into_iter().filter(|entry| entry.2) {
        let _ = writeln!(
            svg,
            "<line x1=\"{at}\" y1=\"22\" x2=\"{}\" y2=\"22\" stroke=\"{colour}\" stroke-width=\"2.5\"/>\n\
             <text x=\"{}\" y=\"26\" fill=\"#111\">{name}</text>",
            at + 20.0,
            at + 26.0,
        );
        at += 95.0;
    }
}

/// Text that may stand between tags; what XML has no character for is left out.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\t' | '\n' | '\r' => escaped.push(' '),
            '\u{fffe}' | '\u{ffff}' => {}
            _ if character.is_control() => {}
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tags that are opened and closed, in order; texts between them. Panics where it is no XML.
    fn parse(xml: &str) -> (Vec<String>, String) {
        let rest = xml.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n").unwrap();
        let (mut open, mut names, mut texts) = (Vec::<String>::new(), Vec::new(), String::new());
        let mut rest = rest;
        while let Some(start) = rest.find('<') {
            let text = &rest[..start];
            assert!(!text.contains('>'), "a bare > in {text:?}");
            for entity in text.split('&').skip(1) {
                let name = entity.split(';').next().unwrap();
                assert!(["amp", "lt", "gt"].contains(&name), "entity {name:?}");
            }
            texts.push_str(text);
            let end = start + rest[start..].find('>').expect("a tag ends");
            let tag = &rest[start + 1..end];
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name));
            } else {
                let name = tag.split([' ', '/']).next().unwrap().to_owned();
                let attributes = tag[name.len()..].trim_end_matches('/');
                assert!(attributes.matches('"').count().is_multiple_of(2), "{tag}");
                assert!(!attributes.contains(['&', '<']), "{tag}");
                if !tag.ends_with('/') {
                    open.push(name.clone());
                }
                names.push(name);
            }
            rest = &rest[end + 1..];
        }
        assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest:?}");
        (names, texts)
    }

    fn curve(n: u32, loss: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
        (1..=n).map(f64::from).map(|step| (step, loss(step))).collect()
    }

    #[test]
    fn a_picture_is_xml_with_axes_curves_and_its_title() {
        let curves = Curves {
            train: curve(2000, |step| 4.0 / step.sqrt()),
            validation: curve(4, |step| 3.0 - step / 4.0),
        };
        let title = "a <b> & \u{1}\"c\"\n";
        let svg = loss_svg(title, &curves);
        let (names, texts) = parse(&svg);
        assert_eq!(names.iter().filter(|name| *name == "polyline").count(), 2);
        assert_eq!(names.iter().filter(|name| *name == "circle").count(), 4);
        assert!(texts.contains("a &lt;b&gt; &amp; \"c\""), "{texts}");
        for word in ["step", "loss", "training", "validation", "500", "2000"] {
            assert!(texts.split('\n').any(|text| text == word) || texts.contains(word), "{word}");
        }
        assert!(svg.len() < 20_000, "{}: too many points", svg.len());
        assert_eq!(svg, loss_svg(title, &curves));
    }

    #[test]
    fn every_point_is_inside_and_odd_curves_are_drawn() {
        for curves in [
            Curves::default(),
            Curves { train: vec![(1.0, 2.5)], validation: Vec::new() },
            Curves { train: curve(5, |_| 0.0), validation: Vec::new() },
            Curves { train: curve(7, |step| -step * 1e6), validation: vec![(7.0, 1e-9)] },
        ] {
            let svg = loss_svg("t", &curves);
            parse(&svg);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            let points = svg.split("points=\"").skip(1).flat_map(|rest| {
                rest.split('"').next().unwrap().split_whitespace().map(str::to_owned)
            });
            for point in points.collect::<Vec<_>>() {
                let (x, y) = point.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((LEFT..=WIDTH - RIGHT).contains(&x), "{point}");
                assert!((TOP..=HEIGHT - BOTTOM).contains(&y), "{point}");
            }
        }
    }

    #[test]
    fn ticks_are_round_and_enclose_the_values() {
        let scale = Scale::new([0.37, 2.91].into_iter(), 0.0, 100.0);
        let labels: Vec<String> = scale.ticks().map(|value| scale.label(value)).collect();
        assert_eq!(labels, ["0.0", "0.5", "1.0", "1.5", "2.0", "2.5", "3.0"]);
        assert!((scale.place(3.0) - 100.0).abs() < 1e-9);
        let steps = Scale::new([1.0, 192.0].into_iter(), 0.0, 1.0);
        let labels: Vec<String> = steps.ticks().map(|value| steps.label(value)).collect();
        assert_eq!(labels, ["0", "50", "100", "150", "200"]);
    }
}
