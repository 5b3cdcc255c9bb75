//! Writes the bodies that are asked for thousands of times a second: a JSON object in one buffer,
//! field by field, as serde writes the wire's type of it but without the texts in between.

use std::cell::Cell;

use hyper::body::Bytes;

/// What most answers need.
const ROOM: usize = 320;

thread_local! {
    /// Where bodies are written, one after the other. Each is copied from here to a place of its very
    /// size, which needs no more allocation than that: room to spare would have to be kept account of.
    static DESK: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A JSON object that is being written.
pub(super) struct Object(Vec<u8>);

impl Object {
    pub(super) fn new() -> Self {
        let mut text = DESK.take();
        text.clear();
        text.reserve(ROOM);
        text.push(b'{');
        Object(text)
    }

    #[inline(always)]
    pub(super) fn text(&mut self, name: &'static str, value: &str) -> &mut Self {
        self.name(name);
        write_text(&mut self.0, value);
        self
    }

    /// A text that is known to need no escapes.
    #[inline(always)]
    pub(super) fn word(&mut self, name: &'static str, value: &str) -> &mut Self {
        self.name(name);
        write_word(&mut self.0, value);
        self
    }

    #[inline(always)]
    pub(super) fn number(&mut self, name: &'static str, value: u64) -> &mut Self {
        self.name(name);
        write_number(&mut self.0, value);
        self
    }

    /// A number that JavaScript would round: as a text.
    #[inline(always)]
    pub(super) fn long(&mut self, name: &'static str, value: u64) -> &mut Self {
        self.name(name);
        self.0.push(b'"');
        write_number(&mut self.0, value);
        self.0.push(b'"');
        self
    }

    pub(super) fn bool(&mut self, name: &'static str, value: bool) -> &mut Self {
        self.name(name);
        self.0.extend_from_slice(if value { b"true" } else { b"false" });
        self
    }

    /// An object in this one.
    pub(super) fn object(
        &mut self,
        name: &'static str,
        write: impl FnOnce(&mut Self),
    ) -> &mut Self {
        self.name(name);
        self.0.push(b'{');
        write(self);
        self.0.push(b'}');
        self
    }

    /// A list of objects.
    pub(super) fn list<T>(
        &mut self,
        name: &'static str,
        items: impl Iterator<Item = T>,
        write: impl Fn(&mut Self, T),
    ) -> &mut Self {
        self.name(name);
        self.0.push(b'[');
        for (i, item) in items.enumerate() {
            self.0.extend_from_slice(if i > 0 { b",{" } else { b"{" });
            write(self, item);
            self.0.push(b'}');
        }
        self.0.push(b']');
        self
    }

    pub(super) fn end(mut self) -> Bytes {
        self.0.push(b'}');
        let body = Bytes::copy_from_slice(&self.0);
        DESK.set(self.0);
        body
    }

    // Into each caller, which knows its name's length: copies of known length are no calls.
    #[inline(always)]
    fn name(&mut self, name: &'static str) {
        if self.0.last() != Some(&b'{') {
            self.0.push(b',');
        }
        self.0.push(b'"');
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }
}

/// A number in decimal digits.
pub(super) fn write_number(to: &mut Vec<u8>, value: u64) {
    to.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn write_word(to: &mut Vec<u8>, value: &str) {
    to.push(b'"');
    to.extend_from_slice(value.as_bytes());
    to.push(b'"');
}

fn write_text(to: &mut Vec<u8>, value: &str) {
    let is_odd = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
    // All of them and not as far as the first: many at a time, then.
    if !value.bytes().fold(false, |odd, byte| odd | is_odd(byte)) {
        write_word(to, value);
    } else {
        // Writing to a buffer cannot fail.
        let _ = serde_json::to_writer(to, value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    proptest! {
        #[test]
        fn any_text_and_number_is_written_as_serde_writes_it(text in any::<String>(), n in any::<u64>()) {
            let mut object = Object::new();
            object.text("a", &text).number("b", n).long("c", n).bool("d", n % 2 == 0);
            object.word("w", "so_it-is 1");
            object.object("e", |inner| {
                inner.number("f", n);
            });
            object.list("g", 0..n % 3, |item, i| {
                item.number("i", i);
            });
            let list: Vec<Value> = (0..n % 3).map(|i| json!({"i": i})).collect();
            let expected = json!({
                "a": text, "b": n, "c": n.to_string(), "d": n % 2 == 0, "e": {"f": n}, "g": list,
                "w": "so_it-is 1",
            });
            let body = object.end();
            prop_assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), expected);
            let quoted = serde_json::to_vec(&text).unwrap();
            prop_assert!(body.windows(quoted.len()).any(|part| part == quoted));
        }
    }
}
