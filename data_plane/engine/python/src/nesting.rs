//! A bound on what parsing costs. regorus' parser tries each bracket in several ways and doubles its work with every
//! level: 30 of them would take it for years.

/// Tokens weighed by two to the power of their depth; some seconds on a slow machine.
const MAX_WEIGHT: u64 = 1 << 20;
const MAX_DEPTH: u32 = 16;

/// Refuse a text that would take too long, with the line where it does.
pub fn bounded(path: &str, source: &str) -> Result<(), String> {
    let (mut depth, mut weight, mut line) = (0_u32, 0_u64, 1_usize);
    let mut bytes = source.bytes().peekable();
    let mut in_word = false;
    while let Some(byte) = bytes.next() {
        let word = byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii();
        if !(byte.is_ascii_whitespace() || (word && in_word)) {
            weight += 1 << depth;
        }
        in_word = word;
        match byte {
            b'\n' => line += 1,
            b'#' => {
                while bytes.peek().is_some_and(|&next| next != b'\n') {
                    bytes.next();
                }
            }
            b'"' => skip_string(&mut bytes),
            b'`' => {
                for next in bytes.by_ref().take_while(|&next| next != b'`') {
                    line += usize::from(next == b'\n');
                }
            }
            b'[' | b'{' | b'(' => depth += 1,
            b']' | b'}' | b')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH || weight > MAX_WEIGHT {
            return Err(format!(
                "--> {path}:{line}:1\nerror: nested deeper than {MAX_DEPTH} levels, or too much is nested deeply"
            ));
        }
    }
    Ok(())
}

/// To the closing quote, or to the end of the line that has none.
fn skip_string(bytes: &mut std::iter::Peekable<std::str::Bytes<'_>>) {
    while let Some(&next) = bytes.peek() {
        if next == b'\n' {
            return;
        }
        bytes.next();
        match next {
            b'"' => return,
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
}
