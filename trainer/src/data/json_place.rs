//! Where a value stands in a JSON text; the parser does not keep it. The text has been parsed already.

/// One step into a value.
pub enum Step<'k> {
    Key(&'k str),
    Index(usize),
}

/// The byte where the value at `path` begins.
pub fn offset(json: &str, path: &[Step]) -> Option<usize> {
    let bytes = json.as_bytes();
    let mut at = blank(bytes, 0);
    for step in path {
        at = match step {
            Step::Key(key) => member(bytes, at, key)?,
            Step::Index(index) => element(bytes, at, *index)?,
        };
    }
    (at < bytes.len()).then_some(at)
}

fn blank(bytes: &[u8], mut at: usize) -> usize {
    while bytes.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

fn member(bytes: &[u8], start: usize, key: &str) -> Option<usize> {
    let mut at = blank(bytes, bytes.get(start).filter(|byte| **byte == b'{').map(|_| start + 1)?);
    while bytes.get(at) == Some(&b'"') {
        let end = value_end(bytes, at);
        let colon = blank(bytes, end);
        let value = blank(bytes, colon + 1);
        if bytes.get(at + 1..end - 1) == Some(key.as_bytes()) {
            return Some(value);
        }
        at = blank(bytes, value_end(bytes, value));
        at = blank(bytes, at + 1);
    }
    None
}

fn element(bytes: &[u8], start: usize, index: usize) -> Option<usize> {
    let mut at = blank(bytes, bytes.get(start).filter(|byte| **byte == b'[').map(|_| start + 1)?);
    for _ in 0..index {
        at = blank(bytes, value_end(bytes, at));
        at = blank(bytes, at + 1);
    }
    Some(at)
}

/// One past the value that begins at `start`.
fn value_end(bytes: &[u8], start: usize) -> usize {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for (at, &byte) in bytes.iter().enumerate().skip(start) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => {
                in_string = !in_string;
                if !in_string && depth == 0 {
                    return at + 1;
                }
            }
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth > 1 => depth -= 1,
            b'}' | b']' => return if depth == 1 { at + 1 } else { at },
            b',' if depth == 0 => return at,
            _ => {}
        }
    }
    bytes.len()
}
