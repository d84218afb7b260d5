//! What somebody who mistyped a name may have meant.

/// How like it a known name has to be, from 0 to 1; the same as in the command line's own suggestions.
const LIKE: f64 = 0.8;

/// A help text with the known name that is most like `name` in front, if one is like it at all.
pub(crate) fn with_nearest<'k>(name: &str, known: impl IntoIterator<Item = &'k str>, help: &str) -> String {
    let lower = name.to_lowercase();
    // Names of one family begin alike, which is no likeness.
    let own = |name: &str| name.rsplit('.').next().unwrap_or(name).to_lowercase();
    let likeness = |known: &str| strsim::jaro_winkler(&own(&lower), &own(known));
    let nearest = known.into_iter().map(|known| (likeness(known), known)).max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((likeness, known)) if likeness > LIKE => format!("did you mean `{known}`? {help}"),
        _ => help.to_owned(),
    }
}
