//! Guards before built-ins that answer otherwise than OPA for some arguments: those are refused, the others go on to
//! regorus. A refusal fails the decision; a silent difference would be another decision.

use anyhow::{Result, anyhow, bail, ensure};
use regorus::unstable::{BUILTINS, Expr, Ref, Span};
use regorus::{Engine, Source, Value};

type Guard = fn(&[Value]) -> Result<()>;

/// What `numbers.range` may make; regorus asks for the memory of all at once, and a process without it dies.
const MAX_RANGE: i64 = 100_000;
const MAX_WIDTH: usize = 64;
/// Beyond Cyrillic the case tables of Go and Rust need not be of one version.
const LAST_CASED: char = '\u{052f}';

pub const GUARDED: &[(&str, u8, Guard)] = &[
    ("glob.match", 3, glob_match),
    ("indexof", 2, second_not_empty),
    ("indexof_n", 2, second_not_empty),
    ("lower", 1, cased),
    ("numbers.range", 2, range),
    ("numbers.range_step", 3, range),
    ("object.subset", 2, comparable),
    ("regex.find_all_string_submatch_n", 3, pattern_first),
    ("regex.find_n", 3, pattern_first),
    ("regex.match", 2, pattern_first),
    ("regex.replace", 3, pattern_second),
    ("replace", 3, second_not_empty),
    ("sprintf", 2, format),
    ("substring", 3, whole_span),
    ("time.clock", 1, utc),
    ("time.date", 1, utc),
    ("time.diff", 2, utc),
    ("time.weekday", 1, utc),
    ("to_number", 1, whole_text),
    ("upper", 1, cased),
];

/// Put the guards in front of regorus' own built-ins.
pub fn install(engine: &mut Engine) -> Result<()> {
    let source = Source::from_contents("builtin".to_owned(), "x".to_owned())?;
    let span = Span {
        source,
        line: 1,
        col: 1,
        start: 0,
        end: 1,
    };
    for &(name, arity, guard) in GUARDED {
        let Some(&(builtin, _)) = BUILTINS.get(name) else {
            bail!("regorus has no {name}");
        };
        let span = span.clone();
        let placeholder = || Expr::Null {
            span: span.clone(),
            value: Value::Null,
            eidx: 0,
        };
        let params: Vec<Ref<Expr>> = (0..arity).map(|_| Ref::new(placeholder())).collect();
        let call = move |args: Vec<Value>| {
            guard(&args)?;
            builtin(&span, &params, &args, true)
                .map_err(|error| anyhow!("{name}: {}", last_line(&error)))
        };
        engine.add_extension(name.to_owned(), arity, Box::new(call))?;
    }
    Ok(())
}

/// Without the position in a source that nobody wrote.
fn last_line(error: &anyhow::Error) -> String {
    let text = error.to_string();
    text.lines()
        .last()
        .unwrap_or_default()
        .trim_start_matches("error: ")
        .to_owned()
}

fn text(value: &Value) -> &str {
    match value {
        Value::String(text) => text,
        _ => "",
    }
}

fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) if number.is_integer() => number.as_i64(),
        _ => None,
    }
}

fn second_not_empty(args: &[Value]) -> Result<()> {
    ensure!(args[1] != Value::from(""), "an empty text is looked for");
    Ok(())
}

fn cased(args: &[Value]) -> Result<()> {
    for char in text(&args[0]).chars().filter(|char| !char.is_ascii()) {
        let changes_length = char.to_lowercase().count() != 1 || char.to_uppercase().count() != 1;
        ensure!(
            char <= LAST_CASED && char != 'Σ' && !changes_length,
            "the case of {char:?} is changed in other ways elsewhere"
        );
    }
    Ok(())
}

fn range(args: &[Value]) -> Result<()> {
    let ends = (whole(&args[0]), whole(&args[1]));
    let (Some(from), Some(to)) = ends else {
        bail!("a range needs whole numbers");
    };
    ensure!(
        from.checked_sub(to)
            .is_some_and(|size| size.abs() < MAX_RANGE),
        "a range has at most {MAX_RANGE} numbers"
    );
    Ok(())
}

fn comparable(args: &[Value]) -> Result<()> {
    use Value::{Array, Object, Set};
    ensure!(
        matches!(
            (&args[0], &args[1]),
            (Object(_), Object(_)) | (Set(_), Set(_)) | (Array(_), Array(_) | Set(_))
        ),
        "two objects, sets or arrays are compared, or a set with an array"
    );
    Ok(())
}

fn whole_span(args: &[Value]) -> Result<()> {
    ensure!(
        args[1..].iter().all(|arg| whole(arg).is_some()),
        "offset and length are whole numbers"
    );
    Ok(())
}

fn utc(args: &[Value]) -> Result<()> {
    ensure!(
        args.iter().all(|arg| whole(arg).is_some()),
        "only nanoseconds in UTC, no time zones"
    );
    Ok(())
}

fn whole_text(args: &[Value]) -> Result<()> {
    let Value::String(text) = &args[0] else {
        return Ok(());
    };
    let digits = text.strip_prefix('-').unwrap_or(text);
    ensure!(
        (1..=18).contains(&digits.len())
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && (digits == "0" || !digits.starts_with('0')),
        "{:?} is not a whole number of at most 18 digits",
        text
    );
    Ok(())
}

fn glob_match(args: &[Value]) -> Result<()> {
    let pattern = text(&args[0]);
    ensure!(
        !["[", "\\", "{}", "{,", ",}", ",,"]
            .iter()
            .any(|part| pattern.contains(part)),
        "{pattern:?} has a character class, an escape or an empty alternative"
    );
    Ok(())
}

fn pattern_first(args: &[Value]) -> Result<()> {
    pattern(text(&args[0]), text(&args[1]))
}

fn pattern_second(args: &[Value]) -> Result<()> {
    pattern(text(&args[1]), text(&args[0]))
}

/// Refuse what the syntaxes of RE2 and of Rust's regex read differently.
fn pattern(pattern: &str, subject: &str) -> Result<()> {
    let mut chars = pattern.chars().peekable();
    let (mut in_class, mut unicode) = (false, false);
    while let Some(char) = chars.next() {
        let next = chars.peek().copied().unwrap_or_default();
        match char {
            '\\' => {
                chars.next();
                unicode |= "dDwWsSbB".contains(next);
                let known = "afntrvdDwWsSbBAzpPx".contains(next)
                    || (next.is_ascii_punctuation() && !"<>".contains(next));
                ensure!(known, "the pattern has the escape \\{next}");
            }
            '[' if in_class => ensure!(next == ':', "the pattern has a class within a class"),
            '[' => in_class = true,
            ']' => in_class = false,
            '&' | '-' | '~' if in_class => {
                ensure!(next != char, "the pattern has {char}{char} in a class")
            }
            '(' if next == '?' && !in_class => {
                chars.next();
                let flag = chars.peek().copied().unwrap_or_default();
                unicode |= flag == 'i';
                ensure!(
                    "P<:imsU".contains(flag),
                    "the pattern has the group (?{flag}"
                );
            }
            _ => {}
        }
    }
    ensure!(
        subject.is_ascii() || !unicode,
        "the pattern has a class or a case that the text is not ASCII for"
    );
    Ok(())
}

/// Verbs of `sprintf` that print the same: %s of no number, %v, and %d %x %X %b of whole numbers.
fn format(args: &[Value]) -> Result<()> {
    let Value::Array(values) = &args[1] else {
        return Ok(());
    };
    let mut values = values.iter();
    let mut chars = text(&args[0]).chars();
    while let Some(char) = chars.next() {
        if char != '%' {
            continue;
        }
        let mut width = String::new();
        let verb = loop {
            match chars.next() {
                Some(digit) if digit.is_ascii_digit() => width.push(digit),
                other => break other.unwrap_or_default(),
            }
        };
        if verb == '%' && width.is_empty() {
            continue;
        }
        let Some(value) = values.next() else {
            bail!("more verbs than values");
        };
        let same = match verb {
            's' => width.is_empty() && !matches!(value, Value::Number(_)),
            'v' => {
                width.is_empty() && (whole(value).is_some() || !matches!(value, Value::Number(_)))
            }
            'd' => {
                whole(value).is_some()
                    && (width.is_empty() || width.parse().is_ok_and(|w: usize| w <= MAX_WIDTH))
            }
            'x' | 'X' | 'b' => width.is_empty() && whole(value).is_some(),
            _ => false,
        };
        ensure!(
            same,
            "%{width}{verb} of {value} is printed in other ways elsewhere"
        );
    }
    ensure!(values.next().is_none(), "more values than verbs");
    Ok(())
}
