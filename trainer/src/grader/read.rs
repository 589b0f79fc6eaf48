//! From JSON to graders. There are no fields but these: a slip in a name would be a reward that nobody meant.

use serde_json::{Map, Value};

use super::{Formula, Grader, GraderError, Kind, Metric, Operation, Template};

/// Most graders of a `multi`.
const GRADERS_MAX: usize = 32;
/// Longest text of a grader, bytes.
const TEXT_BYTES_MAX: usize = 64 << 10;

impl Grader {
    /// Reads a grader, which is at `place` of its request.
    ///
    /// # Errors
    /// [`GraderError`]: the first field that is missing, unknown, wrong, or of a grader that is not offered.
    pub fn read(value: &Value, place: &str) -> Result<Self, GraderError> {
        read(value, place, true)
    }
}

fn invalid(place: impl Into<String>, reason: impl Into<String>) -> GraderError {
    GraderError::Invalid { place: place.into(), reason: reason.into() }
}

/// The fields of one grader.
struct Fields<'a> {
    fields: &'a Map<String, Value>,
    place: &'a str,
}

impl<'a> Fields<'a> {
    fn place(&self, name: &str) -> String {
        format!("{}.{name}", self.place)
    }

    fn text(&self, name: &str) -> Result<&'a str, GraderError> {
        let value = self.fields.get(name).filter(|value| !value.is_null());
        let value = value.ok_or_else(|| invalid(self.place(name), "it is missing"))?;
        let text = value.as_str();
        let text = text.ok_or_else(|| invalid(self.place(name), "it has to be a string"))?;
        if text.len() > TEXT_BYTES_MAX {
            let reason = format!("{} bytes, at most {TEXT_BYTES_MAX}", text.len());
            return Err(invalid(self.place(name), reason));
        }
        Ok(text)
    }

    fn template(&self, name: &str) -> Result<Template, GraderError> {
        Template::read(self.text(name)?).map_err(|reason| invalid(self.place(name), reason))
    }

    fn only(&self, known: &[&str]) -> Result<(), GraderError> {
        match self.fields.keys().find(|name| !known.contains(&name.as_str())) {
            Some(unknown) => Err(invalid(self.place(unknown), "there is no such field")),
            None => Ok(()),
        }
    }
}

fn read(value: &Value, place: &str, may_be_multi: bool) -> Result<Grader, GraderError> {
    let fields = value.as_object().ok_or_else(|| invalid(place, "it has to be an object"))?;
    let fields = Fields { fields, place };
    let unsupported = |hint| GraderError::Unsupported { place: fields.place("type"), hint };
    let kind = match fields.text("type")? {
        "string_check" => {
            fields.only(&["type", "name", "operation", "input", "reference"])?;
            let operation = match fields.text("operation")? {
                "eq" => Operation::Equal,
                "ne" => Operation::NotEqual,
                "like" => Operation::Contains,
                "ilike" => Operation::ContainsAnyCase,
                other => {
                    let reason = format!("{other:?} is none of eq, ne, like, ilike");
                    return Err(invalid(fields.place("operation"), reason));
                }
            };
            let (input, reference) = (fields.template("input")?, fields.template("reference")?);
            Kind::StringCheck { operation, input, reference }
        }
        "text_similarity" => {
            fields.only(&["type", "name", "evaluation_metric", "input", "reference"])?;
            let metric = read_metric(fields.text("evaluation_metric")?, &fields)?;
            let (input, reference) = (fields.template("input")?, fields.template("reference")?);
            Kind::TextSimilarity { metric, input, reference }
        }
        "multi" if may_be_multi => {
            fields.only(&["type", "name", "graders", "calculate_output"])?;
            read_multi(&fields)?
        }
        "multi" => return Err(invalid(fields.place("type"), "a multi cannot be part of another")),
        "python" => {
            return Err(unsupported(
                " as python: no foreign code runs in the server; string_check, text_similarity and multi do",
            ));
        }
        "score_model" | "label_model" => {
            return Err(unsupported(
                " as a model that judges: string_check, text_similarity and multi are",
            ));
        }
        other => {
            let reason = format!("{other:?} is none of string_check, text_similarity, multi");
            return Err(invalid(fields.place("type"), reason));
        }
    };
    Ok(Grader { name: fields.text("name")?.to_owned(), kind })
}

fn read_metric(name: &str, fields: &Fields<'_>) -> Result<Metric, GraderError> {
    let place = fields.place("evaluation_metric");
    let hint = match name {
        "meteor" => " as meteor, which needs a dictionary of synonyms: rouge_l and gleu are near",
        "cosine" => " as cosine, which needs a model of embeddings: fuzzy_match and rouge_l do not",
        _ => {
            let metric = Metric::ALL.into_iter().find(|metric| metric.name() == name);
            return metric.ok_or_else(|| {
                let names: Vec<_> = Metric::ALL.into_iter().map(Metric::name).collect();
                invalid(place, format!("{name:?} is none of {}", names.join(", ")))
            });
        }
    };
    Err(GraderError::Unsupported { place, hint })
}

fn read_multi(fields: &Fields<'_>) -> Result<Kind, GraderError> {
    let place = fields.place("graders");
    let graders = fields.fields.get("graders").and_then(Value::as_object);
    let graders = graders.ok_or_else(|| invalid(&place, "it has to be an object of graders"))?;
    if graders.is_empty() || graders.len() > GRADERS_MAX {
        let reason = format!("{} graders, it has to be 1 to {GRADERS_MAX}", graders.len());
        return Err(invalid(place, reason));
    }
    let read_one = |(name, value): (&String, &Value)| {
        let place = format!("{place}.{name}");
        if !Formula::is_name(name) {
            let reason = "a formula has no name for it: letters, digits and `_`, a letter first";
            return Err(invalid(place, reason));
        }
        Ok((name.clone(), read(value, &place, false)?))
    };
    let graders = graders.iter().map(read_one).collect::<Result<Vec<_>, _>>()?;
    let names: Vec<&str> = graders.iter().map(|(name, _)| name.as_str()).collect();
    let formula = Formula::read(fields.text("calculate_output")?, &names)
        .map_err(|reason| invalid(fields.place("calculate_output"), reason))?;
    Ok(Kind::Multi { graders, formula })
}
